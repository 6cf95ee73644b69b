"""Characters of byte ids, as a reader of any language knows them."""

import unicodedata

import numpy as np

from blt_jax import tokenizer

SPECIAL = "·"  # BOS, EOS and the like
_NAMED = {"\n": "↵", "\t": "⇥"}
_LENGTHS = ((0x80, 1), (0xC2, 0), (0xE0, 2), (0xF0, 3), (0xF5, 4))  # first byte below -> bytes


def characters(tokens: np.ndarray) -> list[str]:
  r"""What to show for each byte.

  Args:
    tokens: int [n] ids.

  Returns:
    n texts: a character at its first byte and "" at its others; two hex digits, as in
    "\xff", at each byte of what is no character, or none that can be seen.
  """
  values = (
    np.asarray(tokens, np.int64) - tokenizer.OFFSET
  ).tolist()  # of bytes; negative if special
  shown: list[str] = []
  while len(shown) < len(values):
    shown += _next(values[len(shown) : len(shown) + 4])
  return shown


def _next(values: list[int]) -> list[str]:
  """What to show for the bytes of the first character of up to 4 values."""
  first = values[0]
  if first < 0:
    return [SPECIAL]
  size = next((size for below, size in _LENGTHS if first < below), 0)
  raw = bytes(value for value in values[: max(size, 1)] if value >= 0)
  try:
    character = raw.decode() if len(raw) == size else ""
  except UnicodeDecodeError:
    character = ""
  character = _NAMED.get(character, character)
  if character.isprintable() and character:
    return [character] + [""] * (size - 1)
  return [rf"\x{byte:02x}" for byte in raw] if character else [rf"\x{first:02x}"]


def columns(text: str) -> int:
  """Columns of a terminal that a text takes."""
  return sum(
    0 if unicodedata.category(c) in ("Mn", "Me", "Cf") else
    2 if unicodedata.east_asian_width(c) in "WF" else 1
    for c in text
  )  # fmt: skip


def standing_alone(character: str) -> str:
  """A character as it looks beside others that it does not join with.

  Marks get a circle to stand on; what is written from right to left does not carry its
  neighbours along, which have an order of their own here.
  """
  if unicodedata.category(character[0]).startswith("M"):
    return f"◌{character}"
  is_from_right = unicodedata.bidirectional(character[0]) in ("R", "AL")
  return f"{character}\N{LEFT-TO-RIGHT MARK}" if is_from_right else character
