"""The open documents of a packer: which is due, and which makes up for its patch size."""

import bisect
import heapq
from operator import attrgetter

from blt_jax.data.packing.open_document import OpenDocument, Piece

_UNIT = 2**20  # of time
_PARTNERS = 16  # documents of fit patch size, of which the one that is due first is taken
_GOLDEN, _SILVER = 5**0.5 / 2 - 0.5, 2**0.5 - 1  # their multiples fill the unit interval evenly

_due, _left = attrgetter("due"), attrgetter("left")


class DocumentPool:
  """Open documents, each of which is due at times spread over its stay.

  In a unit of time a document is packed once, give or take a quarter, whatever its size;
  one larger than `share` is packed at that pace, and stays longer. So the pieces of a
  document lie apart as far as the pool allows, and the oldest is not much older than the
  text that the pool holds. When documents are due follows from their indices and pieces.

  Attributes:
    size: ids of all documents, of each `share` at most.
  """

  def __init__(self, seq_len: int, share: int):
    """Takes S, and the most ids of a document that are packed in a unit of time."""
    self._seq_len, self._share = seq_len, share
    self.size = 0
    self._by_age: dict[int, OpenDocument] = {}  # index -> document, oldest first
    self._turns: list[tuple[int, int]] = []  # a heap of due and index, some of the past
    self._by_patch_size: list[tuple[float, int, OpenDocument]] = []  # and index, sorted

  def __len__(self) -> int:
    return len(self._by_age)

  @property
  def oldest(self) -> OpenDocument:
    """The document read first."""
    return next(iter(self._by_age.values()))

  @property
  def marks(self) -> str:
    """`index:done:due` of each document, oldest first."""
    return " ".join([document.mark for document in self._by_age.values()])

  def first_due(self) -> OpenDocument:
    """The document to take from next."""
    while True:
      due, index = self._turns[0]
      document = self._by_age.get(index)
      if document is not None and document.due == due:
        return document
      heapq.heappop(self._turns)

  def open(self, document: OpenDocument) -> None:
    """Takes a document younger than all others, and says when it is due."""
    now = self.first_due().due if self._by_age else 0
    phase = (document.index + 1) * _GOLDEN % 1
    row = min(document.size, self._seq_len)
    self.restore(document, now + int(_UNIT * phase * row / self._pace(document)))

  def restore(self, document: OpenDocument, due: int) -> None:
    """Takes a document younger than all others, and when it is due."""
    document.pace = self._pace(document)
    document.set_due(due)
    self._by_age[document.index] = document
    self.size += min(document.size, self._share)
    self._insert(document)

  def _pace(self, document: OpenDocument) -> float:
    """They differ a little, lest documents opened together end together."""
    variation = 0.75 + (document.index + 1) * _SILVER % 1 / 2
    return min(document.size, self._share) * variation

  def _insert(self, document: OpenDocument) -> None:
    heapq.heappush(self._turns, (document.due, document.index))
    bisect.insort(self._by_patch_size, (document.patch_size, document.index, document))

  def take(self, document: OpenDocument, positions: int, patches: int) -> Piece:
    """Takes a piece off a document, which leaves the pool if nothing is left."""
    del self._by_patch_size[self._place(document.patch_size, document.index)]
    piece = document.take(positions, patches)
    if document.left:
      # After a piece however short, others have their turn.
      period = max(positions, min(document.size, self._seq_len) / 2) / document.pace
      document.set_due(document.due + int(_UNIT * period))
      self._insert(document)
    else:
      self.size -= min(document.size, self._share)
      del self._by_age[document.index]
    return piece

  def _place(self, patch_size: float, index: int) -> int:
    return bisect.bisect(self._by_patch_size, (patch_size, index))

  def find_largest(self, positions: int, patches: int) -> OpenDocument | None:
    """The document with the most left that has room; the oldest of such."""
    fits = (
      document
      for document in self._by_age.values()
      if document.left <= positions and document.patches_left <= patches
    )
    return max(fits, key=_left, default=None)

  def find_partner(self, document: OpenDocument, patch_size: float) -> OpenDocument | None:
    """A document that makes up for another one where the mean is to be `patch_size`.

    It lies on the other side of the mean, as far from it or a little farther, so that the
    other gets at least half of the patches; failing that, among the farthest. Of a few such
    it is the one that is due first.
    """
    opposite = 2 * patch_size - document.patch_size
    place = self._place(opposite, document.index)
    if opposite < patch_size:
      fit = self._by_patch_size[max(place - _PARTNERS, 0) : max(place, _PARTNERS)]
      partners = [partner for size, _, partner in fit if size < patch_size]
    else:
      start = max(min(place, len(self) - _PARTNERS), 0)
      fit = self._by_patch_size[start : place + _PARTNERS]
      partners = [partner for size, _, partner in fit if size > patch_size]
    return min(partners, key=_due, default=None)
