"""A document on its way into rows."""

import dataclasses
import zlib
from typing import Any

import numpy as np


@dataclasses.dataclass(slots=True)
class Piece:
  """What a row takes from a document at once.

  A piece of k positions holds k ids, the first of which is an input only and the last a
  target only: pieces of one document overlap in one position. The first two positions
  of a piece start patches, so that its first patch has one byte and shares nothing with
  what stands before the piece.

  Attributes:
    tokens: [k] ids.
    lengths: of the document's patches, as many as the piece has. The first one is to be
      replaced by 1, the second and the last by what follows.
    second: bytes of the second patch.
    last: bytes of the last patch, which may be the second.
    mask: bool [k], the ids that are to be learned; None for all.
    levels: of the patches, where there are several resolutions; else None.
  """

  tokens: np.ndarray
  lengths: np.ndarray
  second: int
  last: int
  mask: np.ndarray | None = None
  levels: np.ndarray | None = None


class OpenDocument:
  """The ids and patches of a document, and how far it is done.

  Attributes:
    index: number of the document, counted from the first one read.
    digest: int in [1, 2**31), the same for the same text.
    reader_state: of the reader, before it gave this document.
    size: n, all positions.
    due: when its next piece is to be taken, in the time of the pool.
    pace: positions to be taken in a unit of that time; the pool sets it.
    done: the position where the next piece starts.
    left: positions from there to the end; 0 after the last piece.
    patches_left: patches of a piece that goes to the end.
    patch_size: mean positions per patch of the next `window` patches.
    mark: `index:done:due`, when this was set.
  """

  __slots__ = (
    "_ends", "_lengths", "_levels", "_mask", "_next", "_tokens", "_window", "digest", "done",
    "due", "index", "left", "mark", "pace", "patch_size", "patches_left", "reader_state",
    "size",
  )  # fmt: skip

  def __init__(
    self, document: dict[str, np.ndarray], index: int, reader_state: Any, window: int
  ):
    """Takes `tokens` int [n] and `patch_lengths`, which are positive and sum to n.

    There may be a `loss_mask` bool [n] and `patch_levels`, of each patch, as well.

    Raises:
      ValueError: they are not, or n < 2.
    """
    self._tokens, self._lengths = document["tokens"], document["patch_lengths"]
    self._mask, self._levels = document.get("loss_mask"), document.get("patch_levels")
    self._ends = self._lengths.cumsum(dtype=np.int64)
    self.size = len(self._tokens)
    self.index, self.reader_state, self._window = index, reader_state, window
    self.pace, self.due, self.mark = 0.0, 0, ""  # the pool sets them
    self._check()
    self.digest = _digest(self._tokens)
    if self._lengths[0] > 1:
      self._lengths = np.concatenate([[1, self._lengths[0] - 1], self._lengths[1:]])
      self._ends = np.concatenate([[1], self._ends])
      if self._levels is not None:
        self._levels = np.concatenate([self._levels[:1], self._levels])
    self._go_on_from(0, 1)

  def _check(self) -> None:
    if self.size < 2:
      raise ValueError(
        f"Document {self.index} has {self.size} ids; it needs at least BOS and EOS."
      )
    total = int(self._ends[-1]) if len(self._ends) else 0
    least = int(np.minimum.reduce(self._lengths, initial=self.size))
    if total != self.size or least < 1:
      raise ValueError(
        f"The patch_lengths of document {self.index} sum to {total} and the least is "
        f"{least}; they must be positive and sum to its number of ids, {self.size}, BOS and "
        "EOS included (patch with include_next=False)."
      )

  def go_on_from(self, position: int) -> None:
    """Sets where the next piece starts.

    Raises:
      ValueError: no target is left there.
    """
    if not 0 <= position < self.size - 1:
      raise ValueError(
        f"Document {self.index} has {self.size} ids and cannot go on from {position}: the "
        "saved state belongs to other documents. Give the text that the run began with, or "
        "choose another config.workdir."
      )
    self._go_on_from(position, int(self._ends.searchsorted(position + 2)))

  def _go_on_from(self, position: int, next_patch: int) -> None:
    """`next_patch` is the first that ends two positions ahead, or more."""
    self.done, self._next = position, next_patch
    self.left = self.size - position
    self.patches_left = len(self._ends) + 1 - next_patch
    patches = min(self.patches_left, self._window)
    self.patch_size = self.reach(patches) / patches

  def set_due(self, time: int) -> None:
    """Sets when the next piece is to be taken."""
    self.due = time
    self.mark = f"{self.index}:{self.done}:{self.due}"

  def reach(self, patches: int) -> int:
    """Positions of the longest piece of at most this many patches, at least 2."""
    if patches >= self.patches_left:
      return self.left
    return self._ends.item(self._next + patches - 2) - self.done

  def fit(self, positions: int, patches: int) -> tuple[int, int]:
    """Positions and patches of the longest piece within both budgets, each at least 2."""
    reach = self.reach(patches)
    if reach <= positions:
      return reach, min(patches, self.patches_left)
    end = self._ends.searchsorted(self.done + positions - 1, side="right")
    return positions, int(end) + 2 - self._next

  def take(self, positions: int, patches: int) -> Piece:
    """The next piece, as `fit` measured it; the document goes on from its end."""
    start, stop = self.done, self.done + positions
    first, after = self._next, self._next + patches - 2
    piece = Piece(
      self._tokens[start:stop],
      self._lengths[first - 1 : after + 1],
      min(self._ends.item(first), stop) - start - 1,
      stop - max(self._ends.item(after - 1), start + 1),
      None if self._mask is None else self._mask[start:stop],
      None if self._levels is None else _levels_of(self._levels, first, after),
    )
    if stop == self.size:
      self.left = 0
    else:
      self._go_on_from(stop - 1, after + (self._ends.item(after) == stop))
    return piece


def _levels_of(levels: np.ndarray, first: int, after: int) -> np.ndarray:
  """Those of a piece, whose first two patches start some at every resolution."""
  own = levels[first - 1 : after + 1].copy()
  own[:2] = levels[0]  # as the first of the document does
  return own


def _digest(tokens: np.ndarray) -> int:
  """Tells documents apart by their ends and their size, at a price that no document feels."""
  ends = np.concatenate([tokens[:512], tokens[-512:]])
  return zlib.crc32(ends.tobytes(), len(tokens)) % (2**31 - 1) + 1
