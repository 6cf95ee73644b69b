"""Continues a text with a trained model.

python -m blt_jax.generate --run=runs/quickstart/blt --prompt="def main("
"""

import argparse

from blt_jax import logs, runs, tokenizer
from blt_jax.decode import uncached


def main(argv: list[str] | None = None) -> None:
  """Prints the prompt and its continuation."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--run", required=True, help="folder of the run")
  parser.add_argument("--prompt", default="", help="text to continue; empty: a new document")
  parser.add_argument("--max_bytes", type=int, default=200, help="bytes to add at most")
  parser.add_argument("--temperature", type=float, default=0.0, help="0: the likeliest byte")
  parser.add_argument("--top_p", type=float, default=1.0, help="total probability to draw from")
  parser.add_argument("--seed", type=int, default=0, help="of the draws")
  args = parser.parse_args(argv)
  logs.show_progress()
  sampling = uncached.Sampling(args.temperature, args.top_p, args.seed)
  predict = runs.load_predictor(args.run)
  prompt = tokenizer.encode(args.prompt, add_eos=False)
  new = uncached.generate(predict, prompt, args.max_bytes, sampling)
  print(args.prompt + tokenizer.decode(new))


if __name__ == "__main__":
  main()
