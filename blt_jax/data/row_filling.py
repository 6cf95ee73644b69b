"""Which pieces of which documents share a row."""

import numpy as np

from blt_jax import tokenizer
from blt_jax.data.document_pool import DocumentPool
from blt_jax.data.open_document import OpenDocument, Piece

Rows = dict[str, np.ndarray]


class RowFiller:
  """Fills one row of S + 1 positions, the last of which is a target only, and P patches."""

  def __init__(self, pool: DocumentPool, row: Rows):
    """Takes the pool, and a row of zeros."""
    self._pool, self._row = pool, row
    self._seq_len, self._num_patches = len(row["tokens"]), len(row["patch_lengths"])
    self._positions, self._patches = self._seq_len + 1, self._num_patches  # still free
    self._reserve(self._seq_len // 8, self._num_patches // 8)  # for the oldest document

  def _reserve(self, positions: int, patches: int) -> None:
    self._least_positions, self._least_patches = max(positions, 2), max(patches, 2)

  @property
  def has_room(self) -> bool:
    """Whether another piece fits."""
    return self._positions >= 2 and self._patches >= 2

  def add(self) -> None:
    """Takes pieces of one or two documents from a pool that is not empty.

    The oldest document goes first. Where it would spend one budget before the other, a
    document on the other side of the mean joins it, and both are cut where both budgets
    are spent. If one of them ends before, it is taken whole, and nothing else. Of a new
    row, the oldest gets an eighth of the positions or of the patches, if it has so many.
    """
    oldest, partner = self._pool.oldest, None
    if self._patches >= 4:
      partner = self._pool.find_partner(self._positions / self._patches)
    if partner is None:
      self._take(oldest, self._patches)
    else:
      self._add_pair(oldest, partner)

  def _add_pair(self, oldest: OpenDocument, partner: OpenDocument) -> None:
    share = self._share(oldest, partner)
    others = self._patches - share
    room = self._positions - self._least_positions
    if share < oldest.patches_left and partner.patches_left <= others and partner.left <= room:
      self._take(partner, self._patches)
      return
    self._reserve(0, 0)
    if share >= oldest.patches_left:
      self._take(oldest, self._patches)
      return
    self._take(oldest, share)
    if self.has_room:
      self._take(partner, self._patches)

  def _share(self, oldest: OpenDocument, partner: OpenDocument) -> int:
    """Patches of `oldest`, if `partner` has the others and all positions are used."""
    free, patches = self._positions, self._patches
    near, most = free >> 9, patches - 2
    least = min(self._least_patches, most)
    # Of shares outside of these, one of the two ends.
    first, last = patches - partner.patches_left + 1, oldest.patches_left - 1
    gain = oldest.patch_size - partner.patch_size
    share = round((free - partner.patch_size * patches) / gain)
    for _ in range(6):  # the patch sizes are means; the patches at hand differ
      share = least if share < least else most if share > most else share
      if not first <= share <= last:
        return share
      excess = oldest.reach(share) + partner.reach(patches - share) - free
      if -near <= excess <= near:
        return share
      share = round(share - excess / gain)
    return min(max(share, least), most)

  def _take(self, document: OpenDocument, patches: int) -> None:
    """Puts the next piece of a document into the row."""
    positions, patches = document.fit(self._positions, patches)
    piece = self._pool.take(document, positions, patches)
    self._write_tokens(piece)
    self._write_lengths(piece)
    self._positions -= positions
    self._patches -= patches

  def _write_tokens(self, piece: Piece) -> None:
    row, start = self._row, self._seq_len + 1 - self._positions
    end = start + len(piece.tokens) - 1
    row["tokens"][start:end] = piece.tokens[:-1]
    row["targets"][start:end] = piece.tokens[1:]
    row["loss_mask"][start:end] = True
    if end < self._seq_len:  # where a document is cut, an EOS keeps attention inside it
      row["tokens"][end] = tokenizer.EOS_ID

  def _write_lengths(self, piece: Piece) -> None:
    lengths, slot = self._row["patch_lengths"], self._num_patches - self._patches
    end = slot + len(piece.lengths)
    lengths[slot:end] = piece.lengths
    lengths[slot] = 1
    lengths[slot + 1] = piece.second
    lengths[end - 1] = piece.last

  def close(self) -> None:
    """Makes the free positions part of the last patch."""
    lengths, used = self._row["patch_lengths"], self._num_patches - self._patches
    if used:
      lengths[used - 1] += self._positions
    else:  # no document was left
      lengths[:2] = 1, self._seq_len
