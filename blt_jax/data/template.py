"""How the turns of a dialogue become text: what stands before and after what a role says."""

import dataclasses
import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from blt_jax import tokenizer
from blt_jax.storage import files, unique_names

ROLES = ("system", "user", "assistant")
_PARTS = ("prefix", "suffix")
_END = "<|end|>\n"

Turn = tuple[str, bytes]  # a role, and what it says


@dataclasses.dataclass(frozen=True)
class Template:
  """Prefix and suffix of the turns of each role.

  The suffix of the assistant's is what ends an answer, to learn and when writing one.
  """

  system: tuple[str, str] = ("<|system|>\n", _END)
  user: tuple[str, str] = ("<|user|>\n", _END)
  assistant: tuple[str, str] = ("<|assistant|>\n", _END)

  def __post_init__(self):
    for role in ROLES:
      for part, text in zip(_PARTS, getattr(self, role), strict=True):
        if not isinstance(text, str) or not tokenizer.is_text(text):
          raise ValueError(f"The {part} of {role!r} is {text!r}; it must be a text.")
    if not self.assistant[1]:
      raise ValueError("The suffix of 'assistant' is empty; it must end the answers.")

  @property
  def end(self) -> bytes:
    """What ends an answer."""
    return self.assistant[1].encode()

  def render(self, turns: Iterable[Turn]) -> tuple[bytes, np.ndarray]:
    """Writes a dialogue.

    Args:
      turns: roles of `ROLES`, and what they say.

    Returns:
      The text, and int64 [n, 2], where in it each answer begins, and where it has ended,
      the suffix included.
    """
    text, answers = bytearray(), []
    for role, content in turns:
      prefix, suffix = getattr(self, role)
      text += prefix.encode()
      start = len(text)
      text += content + suffix.encode()
      if role == "assistant":
        answers.append((start, len(text)))
    return bytes(text), np.array(answers, np.int64).reshape(-1, 2)

  def ask(self, turns: Iterable[Turn]) -> bytes:
    """A dialogue up to where the assistant's next answer begins."""
    return self.render(turns)[0] + self.assistant[0].encode()

  def to_json(self) -> str:
    """The template as `parse` reads it."""
    parts = {role: dict(zip(_PARTS, getattr(self, role), strict=True)) for role in ROLES}
    return json.dumps(parts)


def load(given: str) -> Template:
  """A template, from what `config.data.template` says.

  Args:
    given: the path of a file, or what such a file holds; empty for the usual template.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it holds no template.
  """
  if not given or given.lstrip().startswith("{"):
    return parse(given) if given else Template()
  try:
    return parse(files.read_bytes(given).decode())
  except ValueError as error:
    raise ValueError(f"{given}: {error}") from None


def parse(text: str) -> Template:
  """Reads a template: {"user": {"prefix": "Q: ", "suffix": "."}, ...}, for all `ROLES`.

  Raises:
    ValueError: it is none.
  """
  try:
    roles = json.loads(text, object_pairs_hook=unique_names.refuse)
  except (ValueError, RecursionError) as error:
    raise ValueError(f"A template is a JSON object, and this is none: {error}.") from None
  _check_names("A template", roles, ROLES)
  for role, parts in roles.items():
    _check_names(f"The role {role!r} of a template", parts, _PARTS)
  return Template(**{r: (parts["prefix"], parts["suffix"]) for r, parts in roles.items()})


def _check_names(what: str, found: Any, wanted: tuple[str, ...]) -> None:
  names = list(found) if isinstance(found, dict) else []
  if sorted(names) != sorted(wanted):
    has = f"has {names}" if isinstance(found, dict) else f"is {found!r}"
    raise ValueError(f"{what} {has}; it must be an object with {list(wanted)}.")
