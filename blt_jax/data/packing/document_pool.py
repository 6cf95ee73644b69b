"""The open documents of a packer, by age and by patch size."""

import bisect

from blt_jax.data.packing.open_document import OpenDocument, Piece


class DocumentPool:
  """Open documents.

  Attributes:
    left: positions that all of them have left.
  """

  def __init__(self) -> None:
    self.left = 0
    self._by_age: list[OpenDocument] = []
    self._by_size: list[tuple[float, int, OpenDocument]] = []  # patch size and index, sorted

  def __len__(self) -> int:
    return len(self._by_age)

  @property
  def oldest(self) -> OpenDocument:
    """The document read first."""
    return self._by_age[0]

  @property
  def marks(self) -> str:
    """`index:done` of each document, oldest first."""
    return " ".join([document.mark for document in self._by_age])

  def add(self, document: OpenDocument) -> None:
    """Takes a document younger than all others."""
    self._by_age.append(document)
    self._insert(document)

  def _insert(self, document: OpenDocument) -> None:
    bisect.insort(self._by_size, (document.patch_size, document.index, document))
    self.left += document.left

  def take(self, document: OpenDocument, positions: int, patches: int) -> Piece:
    """Takes a piece off a document, which leaves the pool if nothing is left."""
    del self._by_size[self._place(document.patch_size, document.index)]
    self.left -= document.left
    piece = document.take(positions, patches)
    if document.left:
      self._insert(document)
    else:
      self._by_age.remove(document)
    return piece

  def _place(self, patch_size: float, index: int) -> int:
    return bisect.bisect(self._by_size, (patch_size, index))

  def find_partner(self, patch_size: float) -> OpenDocument | None:
    """A document that makes up for the oldest where the mean is to be `patch_size`.

    It lies on the other side of the mean, as far from it as the oldest or a little
    farther, so that the oldest gets at least half of the patches; failing that, the
    farthest.
    """
    opposite = 2 * patch_size - self.oldest.patch_size
    place = self._place(opposite, self.oldest.index)
    if opposite < patch_size:
      partner = self._by_size[max(place - 1, 0)][2]
      return partner if partner.patch_size < patch_size else None
    partner = self._by_size[min(place, len(self._by_size) - 1)][2]
    return partner if partner.patch_size > patch_size else None
