"""Continues a text with a trained model.

python -m blt_jax.generate --run=runs/quickstart/blt --prompt="def main("
"""

from absl import app, flags

from blt_jax import logs, runs, tokenizer
from blt_jax.decode import uncached

_RUN = flags.DEFINE_string("run", None, "Folder of the run.", required=True)
_PROMPT = flags.DEFINE_string("prompt", "", "Text to continue; empty starts a document.")
_MAX_BYTES = flags.DEFINE_integer("max_bytes", 200, "Bytes to add at most.", lower_bound=1)
_TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0 takes the likeliest byte.")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Draw among bytes of this total probability.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the draws.")


def main(argv: list[str]) -> None:
  """Prints the prompt and its continuation."""
  del argv
  logs.show_progress()
  sampling = uncached.Sampling(_TEMPERATURE.value, _TOP_P.value, _SEED.value)
  predict = runs.load_predictor(_RUN.value)
  prompt = tokenizer.encode(_PROMPT.value, add_eos=False)
  new = uncached.generate(predict, prompt, _MAX_BYTES.value, sampling)
  print(_PROMPT.value + tokenizer.decode(new))


if __name__ == "__main__":
  app.run(main)
