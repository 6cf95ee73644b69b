"""What the ids of pieces say: where a prompt may go on inside one, and where text ends."""

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import numpy as np

from blt_jax import tokenizer
from blt_jax.decode import utf8
from blt_jax.decode.sampling import Sampling


class Pieces(Protocol):
  """A vocabulary whose first ids are those of `tokenizer`; see `data.piece_vocabulary`."""

  sizes: np.ndarray  # int [V], bytes of each id

  def encode(self, text: bytes) -> np.ndarray:
    """Ids int32 [n] of a text, without BOS and EOS."""

  def decode_bytes(self, ids: Iterable[int] | np.ndarray) -> bytes:
    """The bytes of ids [n]."""

  def starting_with(self, start: bytes) -> np.ndarray:
    """Which ids begin with these bytes: bool [V]."""


class Text(NamedTuple):
  """What became of ids so far: bytes of the continuation, and why it ends, if it does."""

  raw: bytes
  finish: str | None


def open_end(pieces: Pieces, ids: np.ndarray) -> tuple[np.ndarray, bytes]:
  """Takes back the last piece of a prompt, which may have ended inside a longer one.

  The model has learned texts in their usual pieces: after "The sk" it has hardly ever seen
  "y", where "sky" is a piece. So the piece is drawn anew, among those that begin with it.

  Args:
    pieces: the vocabulary.
    ids: int32 [n] of a prompt, BOS first.

  Returns:
    The ids to keep, and the bytes which the next piece must begin with; none where no other
    piece does.
  """
  start = pieces.decode_bytes(ids[-1:])
  has_others = bool(start) and pieces.starting_with(start).sum() > 1
  if not has_others or utf8.state_after(ids[:-1]) != utf8.BETWEEN:
    return ids, b""
  return ids[:-1], start


def read(pieces: Pieces, start: bytes, ids: np.ndarray, options: Sampling) -> Text:
  """The continuation that ids [n] stand for, cut where a stop string or `max_bytes` is met.

  Args:
    pieces: the vocabulary.
    start: what the first piece begins with, of the prompt.
    ids: int [n], generated.
    options: how the prompt is continued.
  """
  raw = pieces.decode_bytes(ids)[len(start) :]
  stops = [_to_bytes(stop) for stop in options.stop]
  ends = [(raw.find(stop) + len(stop), -len(stop)) for stop in stops if stop in raw]
  end, length = min(ends, default=(len(raw) + 1, 0))  # the first that ends, the longest of them
  if ends and end <= options.max_bytes:
    return Text(raw[: end + length], "stop")
  if len(raw) < options.max_bytes:
    return Text(raw, None)
  raw = raw[: options.max_bytes]
  return Text(raw[: whole_characters(raw)] if options.valid_utf8 else raw, "length")


def whole_characters(raw: bytes) -> int:
  """How many bytes there are before a character that is not complete."""
  tail = tokenizer.encode(raw[-4:], add_bos=False, add_eos=False)
  for cut in range(len(tail)):
    if utf8.state_after(tail[: len(tail) - cut]) == utf8.BETWEEN:
      return len(raw) - cut
  return len(raw) - len(tail)


def settled(raw: bytes, options: Sampling) -> int:
  """How many bytes of a continuation nothing to come changes: whole characters, no stop."""
  held = max((len(_to_bytes(stop)) for stop in options.stop), default=1) - 1
  return whole_characters(raw[: max(len(raw) - held, 0)])


def count_ids(pieces: Pieces, ids: np.ndarray, num_bytes: int) -> int:
  """How many of ids [n] it takes for their first `num_bytes` bytes."""
  ends = np.cumsum(pieces.sizes[ids])
  return int(np.searchsorted(ends, num_bytes)) + 1 if num_bytes else 0


def _to_bytes(stop: str | bytes) -> bytes:
  return stop.encode() if isinstance(stop, str) else stop
