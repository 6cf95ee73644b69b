"""Which pieces of which documents share a row."""

import numpy as np

from blt_jax import tokenizer
from blt_jax.data.document_pool import DocumentPool
from blt_jax.data.open_document import OpenDocument, Piece

Row = dict[str, np.ndarray]


class RowFiller:
  """Fills one row of S + 1 positions, the last of which is a target only, and P patches."""

  def __init__(self, pool: DocumentPool, seq_len: int, num_patches: int):
    self._pool = pool
    self._seq_len, self._num_patches = seq_len, num_patches
    self._positions, self._patches = seq_len + 1, num_patches  # still free
    self._pieces: list[Piece] = []
    self._reserve(seq_len // 8, num_patches // 8)  # for the oldest document

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
    gain = oldest.patch_size - partner.patch_size
    share = (free - partner.patch_size * patches) / gain
    for _ in range(6):  # the patch sizes are means; the patches at hand differ
      share = min(max(round(share), self._least_patches), patches - 2)
      if share >= oldest.patches_left or patches - share >= partner.patches_left:
        break
      excess = oldest.reach(share) + partner.reach(patches - share) - free
      if abs(excess) <= free >> 9:  # near enough
        break
      share -= excess / gain
    return min(max(round(share), self._least_patches), patches - 2)

  def _take(self, document: OpenDocument, patches: int) -> None:
    """Puts the next piece of a document into the row."""
    positions, patches = document.fit(self._positions, patches)
    self._pieces.append(self._pool.take(document, positions, patches))
    self._positions -= positions
    self._patches -= patches

  def close(self) -> Row:
    """The row; its free positions are part of the last patch."""
    used = self._seq_len + 1 - self._positions
    tokens = np.zeros(self._seq_len + 1, np.int32)
    np.concatenate([p.tokens for p in self._pieces], out=tokens[:used])
    targets = tokens[1:].copy()
    loss_mask = np.zeros(self._seq_len, bool)
    loss_mask[:used] = True
    end = -1
    for piece in self._pieces:
      end += len(piece.tokens)
      if end < self._seq_len:  # where a document is cut, an EOS keeps attention inside it
        tokens[end] = tokenizer.EOS_ID
        targets[end] = 0
        loss_mask[end] = False
    return {
      "tokens": tokens[:-1],
      "targets": targets,
      "loss_mask": loss_mask,
      "patch_lengths": self._patch_lengths(),
    }

  def _patch_lengths(self) -> np.ndarray:
    lengths = np.zeros(self._num_patches, np.int32)
    used = self._num_patches - self._patches
    np.concatenate([p.lengths for p in self._pieces], out=lengths[:used])
    slot = 0
    for piece in self._pieces:
      lengths[slot] = 1
      lengths[slot + 1] = piece.second
      slot += len(piece.lengths)
      lengths[slot - 1] = piece.last
    lengths[slot - 1] += self._positions
    return lengths
