"""Which pieces of which documents share a row."""

from collections.abc import Sequence

import numpy as np

from blt_jax import tokenizer
from blt_jax.data.packing.document_pool import DocumentPool
from blt_jax.data.packing.open_document import OpenDocument, Piece

Rows = dict[str, np.ndarray]
_MAX_NAMED = 64  # documents of a row that are named


def empty_rows(count: int, seq_len: int, num_patches: int, is_nested: bool = False) -> Rows:
  """Rows to fill: int32 zeros and all the loss; see `rows.PackRows`."""
  rows = {
    "tokens": np.zeros((count, seq_len), np.int32),
    "targets": np.zeros((count, seq_len), np.int32),
    "loss_mask": np.ones((count, seq_len), bool),
    "patch_lengths": np.zeros((count, num_patches), np.int32),
    "documents": np.zeros((count, min(num_patches // 2, _MAX_NAMED)), np.int32),
    "open_documents": np.zeros((count, 1), np.int32),
  }
  if is_nested:
    rows["patch_levels"] = np.zeros((count, num_patches), np.uint8)
  return rows


class RowFiller:
  """Fills one row of S + 1 positions, the last of which is a target only, and P patches."""

  def __init__(self, pool: DocumentPool, row: Sequence[np.ndarray], multiple: int = 1):
    """Takes the pool, arrays of a row of `empty_rows`, and what divides starts of pieces."""
    self._pool, self._multiple = pool, multiple
    self._tokens, self._targets, self._loss_mask, self._lengths = row[:4]
    self._names, self._num_open = row[4:6]
    self._levels = row[6] if len(row) > 6 else None  # of several resolutions
    self._pieces = 0
    self._seq_len, self._num_patches = len(self._tokens), len(self._lengths)
    self._positions, self._patches = self._seq_len + 1, self._num_patches  # still free
    self._least_positions = max(self._seq_len // 8, 2)  # for the document that is due
    self._least_patches = max(self._num_patches // 8, 2)

  @property
  def has_room(self) -> bool:
    """Whether another piece fits."""
    return self._positions >= 2 and self._patches >= 2

  @property
  def start(self) -> int:
    """The slot where the next piece begins."""
    return self._seq_len + 1 - self._positions

  def fits(self, document: OpenDocument) -> bool:
    """Whether all that is left of a document has room."""
    return document.left <= self._positions and document.patches_left <= self._patches

  def add(self) -> None:
    """Takes pieces of one or two documents from a pool that is not empty.

    The document that is due goes first. Where it would spend one budget long before the
    other, a document on the other side of the mean joins it, and both are cut where both
    budgets are spent. If one of them ends before, it is taken whole, and nothing else. Of a new
    row, the first gets an eighth of the positions or of the patches, if it has so many.
    """
    self._num_open[0] = len(self._pool)
    first, partner = self._pool.first_due(), None
    if self._patches >= 4 and not self._is_filled_by(first):
      partner = self._pool.find_partner(first, self._positions / self._patches)
    if partner is None:
      self._take(first, self._patches)
    else:
      self._add_pair(first, partner)

  def add_whole(self) -> bool:
    """Takes what is left of a document; False where none in the pool has room.

    That is the document that is due, or where it has none, the largest that has. One that is
    longer than a row is cut, and begins in an empty one.
    """
    if self._pieces == 0:
      self._num_open[0] = len(self._pool)
    due = self._pool.first_due()
    is_next = self._pieces == 0 or self.fits(due)
    document = due if is_next else self._pool.find_largest(self._positions, self._patches)
    if document is not None:
      self._take(document, self._patches)
    return document is not None

  def _is_filled_by(self, document: OpenDocument) -> bool:
    """Whether a document alone spends both budgets, but for a 64th."""
    return 64 * abs(document.reach(self._patches) - self._positions) <= self._positions

  def _add_pair(self, first: OpenDocument, partner: OpenDocument) -> None:
    share = self._share(first, partner)
    others = self._patches - share
    room = self._positions - self._least_positions
    if share < first.patches_left and partner.patches_left <= others and partner.left <= room:
      self._take(partner, self._patches)
      return
    self._least_positions = self._least_patches = 2
    if share >= first.patches_left:
      self._take(first, self._patches)
      return
    self._take(first, share)
    if self.has_room:
      self._take(partner, self._patches)

  def _share(self, first: OpenDocument, partner: OpenDocument) -> int:
    """Patches of `first`, if `partner` has the others and all positions are used."""
    free, patches = self._positions, self._patches
    low, high = min(self._least_patches, patches - 2), patches - 2
    gain = first.patch_size - partner.patch_size
    share = min(max(round((free - partner.patch_size * patches) / gain), low), high)
    for _ in range(6):  # the patch sizes are means; the patches at hand differ
      if share >= first.patches_left or patches - share >= partner.patches_left:
        break
      excess = first.reach(share) + partner.reach(patches - share) - free
      if low == high or abs(excess) <= free >> 8:  # near enough
        break
      if (excess > 0) == (gain > 0):
        high = max(share - 1, low)
      else:
        low = min(share + 1, high)
      share = round(share - excess / gain)
      if not low <= share <= high:
        share = (low + high) // 2
    return share

  def _take(self, document: OpenDocument, patches: int) -> None:
    """Puts the next piece of a document into the row."""
    positions, patches = document.fit(self._positions, patches)
    if self._pieces < len(self._names):
      self._names[self._pieces] = document.digest
    self._pieces += 1
    piece = self._pool.take(document, positions, patches)
    padding = min(-positions % self._multiple, self._positions - positions)
    self._write_tokens(piece, padding)
    self._write_lengths(piece, padding)
    self._positions -= positions + padding
    self._patches -= patches

  def _write_tokens(self, piece: Piece, padding: int) -> None:
    start = self.start
    end = start + len(piece.tokens) - 1
    self._tokens[start:end] = piece.tokens[:-1]
    self._targets[start:end] = piece.tokens[1:]
    if piece.mask is not None:
      self._loss_mask[start:end] = piece.mask[1:]
    if end < self._seq_len:  # where a document is cut, an EOS keeps attention inside it
      self._tokens[end] = tokenizer.EOS_ID
      self._loss_mask[end : end + 1 + padding] = False

  def _write_lengths(self, piece: Piece, padding: int) -> None:
    lengths, slot = self._lengths, self._num_patches - self._patches
    end = slot + len(piece.lengths)
    lengths[slot:end] = piece.lengths
    lengths[slot] = 1
    lengths[slot + 1] = piece.second
    lengths[end - 1] = piece.last + padding
    if self._levels is not None:
      self._levels[slot:end] = piece.levels

  def close(self) -> None:
    """Makes the free positions part of the last patch, without loss."""
    self._loss_mask[max(self._seq_len - self._positions, 0) :] = False
    used = self._num_patches - self._patches
    if used:
      self._lengths[used - 1] += self._positions
    else:  # no document was left
      self._lengths[:2] = 1, self._seq_len
