"""Lines of JSON with prompts, and those with what became of them."""

import dataclasses
import difflib
import json
from typing import Any

import numpy as np

from blt_jax import tokenizer
from blt_jax.cli.chat import Asker
from blt_jax.decode.generation import Generation
from blt_jax.decode.sampling import Sampling
from blt_jax.storage import unique_names

_OPTIONS = {field.name for field in dataclasses.fields(Sampling)} | {"prompt", "num_samples"}
_RESULTS = {
  *("text", "finish", "bytes", "log_prob", "bytes_hex", "patch_starts", "entropies", "error")
}
_MOST_SAMPLES = 65536
_MISSPELT = 0.8  # how much like an option's a field's name must be to be taken for it


@dataclasses.dataclass(frozen=True)
class PromptLine:
  """A line of the input.

  Attributes:
    prompt: text to continue.
    samples: the options of each continuation.
    others: fields that the lines of the output have as well.
    given: the `prompt` of the line; None where it has messages.
  """

  prompt: str | bytes
  samples: list[Sampling]
  others: dict[str, Any]
  given: str | None


def parse_fields(line: bytes) -> dict[str, Any]:
  """The fields of a line.

  Raises:
    ValueError: it is no JSON object.
  """
  try:
    fields = json.loads(line, object_pairs_hook=unique_names.refuse)
  except (ValueError, RecursionError) as error:
    raise ValueError(f"it is no JSON ({error}).") from None
  if not isinstance(fields, dict):
    raise ValueError('it must be an object with a string "prompt".')
  return fields


def read(
  fields: dict[str, Any], options: Sampling, num_samples: int, asker: Asker | None = None
) -> PromptLine:
  """Reads the fields of a line.

  Args:
    fields: of the line.
    options: what it does not say.
    num_samples: likewise.
    asker: of a dialogue; None for prompts that are continued as they are.

  Raises:
    ValueError: there is no prompt, an option is wrong or misspelt, or a field has the name of
      one of the output; or as `Asker.read`.
  """
  prompt = _prompt(fields) if asker is None else asker.read(fields)
  for name in fields.keys() - _OPTIONS:
    if meant := difflib.get_close_matches(name.lower(), _OPTIONS, n=1, cutoff=_MISSPELT):
      raise ValueError(f"the field {name!r} is no option; write {meant[0]!r}, or rename it.")
    if name in _RESULTS:
      raise ValueError(f"the output has a field {name!r} of its own; rename this one.")
  given = {k: v for k, v in fields.items() if k in _OPTIONS}
  given.pop("prompt", None)
  count = given.pop("num_samples", num_samples)
  return PromptLine(
    prompt,
    samples(dataclasses.replace(options, **given), count),
    other_fields(fields),
    fields.get("prompt"),
  )


def _prompt(fields: dict[str, Any]) -> str:
  prompt = fields.get("prompt")
  if not isinstance(prompt, str):
    hint = "; dialogues need --chat" if "messages" in fields else ""
    raise ValueError(f'it must be an object with a string "prompt"{hint}.')
  if not tokenizer.is_text(prompt):
    raise ValueError("the prompt has a lone surrogate.")
  return prompt


def other_fields(fields: dict[str, Any]) -> dict[str, Any]:
  """The fields of a line of the input that its lines of the output have as well."""
  return {k: v for k, v in fields.items() if k not in _OPTIONS | _RESULTS}


def samples(options: Sampling, count: Any) -> list[Sampling]:
  """The options of each of several continuations, whose seeds follow one another.

  Raises:
    ValueError: the count is out of bounds, or all continuations would be the same.
  """
  if type(count) is not int or not 1 <= count <= _MOST_SAMPLES:
    raise ValueError(
      f"num_samples is {count!r}; it must be an integer in [1, {_MOST_SAMPLES}]."
    )
  if count > 1 and options.temperature == 0:
    raise ValueError(
      f"temperature 0 takes the likeliest byte, so all num_samples {count} would be the same; "
      "set a temperature."
    )
  return [dataclasses.replace(options, seed=options.seed + i) for i in range(count)]


def record(
  line: PromptLine, sample: int, result: Generation, show_patches: bool
) -> dict[str, Any]:
  """The fields of a line of the output.

  Args:
    line: of the input.
    sample: number of the continuation among those of the line.
    result: what became of it.
    show_patches: tell where patches start, and the entropies.
  """
  fields: dict[str, Any] = dict(line.others)
  if line.given is not None:
    fields["prompt"] = line.given
  if len(line.samples) > 1:
    fields["seed"] = line.samples[sample].seed
  if result.error:
    return fields | {"finish": result.finish, "error": result.error}
  fields |= {
    "text": result.text,
    "finish": result.finish,
    "bytes": len(result.bytes),
    "log_prob": float(result.log_probs.sum(dtype=np.float64)),
  }
  if result.text.encode() != result.bytes:
    fields["bytes_hex"] = result.bytes.hex()
  if show_patches and result.starts is not None:
    fields["patch_starts"] = np.flatnonzero(result.starts).tolist()
  if show_patches and result.entropies is not None:
    fields["entropies"] = [round(float(h), 4) for h in result.entropies]
  return fields
