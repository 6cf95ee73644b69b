"""Bytes as characters of any language."""

import pytest

from blt_jax import tokenizer
from blt_jax.cli.characters import characters, columns, standing_alone


def shown(text):
  return characters(tokenizer.encode(text, add_bos=False, add_eos=False))


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("ab c", ["a", "b", " ", "c"]),
    ("é中😀", ["é", "", "中", "", "", "😀", "", "", ""]),
    ("\n\t", ["↵", "⇥"]),
    (b"\xff\xc3", [r"\xff", r"\xc3"]),  # no first byte, and one alone
    (b"\xe4\xb8a", [r"\xe4", r"\xb8", "a"]),  # cut off
    (b"\xc0\x80", [r"\xc0", r"\x80"]),  # overlong
    (b"\xed\xa0\x80", [r"\xed", r"\xa0", r"\x80"]),  # a surrogate
    (b"\xf4\x90\x80\x80", [r"\xf4", r"\x90", r"\x80", r"\x80"]),  # above U+10FFFF
    ("\x00\u200b", [r"\x00", r"\xe2", r"\x80", r"\x8b"]),  # nothing to see
  ],
)
def test_characters_stand_at_their_first_byte(text, expected):
  assert shown(text) == expected


def test_special_ids_are_dots_and_end_characters():
  tokens = [
    tokenizer.BOS_ID,
    *tokenizer.encode(b"\xc3", add_bos=False),
    0xA9 + tokenizer.OFFSET,
  ]
  assert characters(tokens) == ["·", r"\xc3", "·", r"\xa9"]


@pytest.mark.parametrize(
  ("text", "width"), [("a", 1), ("é", 1), ("中", 2), ("😀", 2), ("ﾊ", 1)]
)
def test_columns_of_a_terminal(text, width):
  assert columns(text) == width


def test_what_joins_its_neighbours_stands_alone():
  assert standing_alone("\u0301") == "◌\u0301" and columns("◌\u0301") == 1
  assert standing_alone("ש") == "ש\u200e" and columns("ש\u200e") == 1
  assert standing_alone("a") == "a"
