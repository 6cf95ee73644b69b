"""The open documents of a packer, by age and by patch size."""

import bisect

from blt_jax.data.open_document import OpenDocument, Piece


class DocumentPool:
  """Open documents.

  Attributes:
    left: positions that all of them have left.
  """

  def __init__(self) -> None:
    self.left = 0
    self._by_age: list[OpenDocument] = []
    self._keys: list[tuple[float, int]] = []  # patch size and index, sorted
    self._by_size: list[OpenDocument] = []

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
    key = document.patch_size, document.index
    place = bisect.bisect(self._keys, key)
    self._keys.insert(place, key)
    self._by_size.insert(place, document)
    self.left += document.left

  def take(self, document: OpenDocument, positions: int, patches: int) -> Piece:
    """Takes a piece off a document, which leaves the pool if nothing is left."""
    place = bisect.bisect_left(self._keys, (document.patch_size, document.index))
    del self._keys[place], self._by_size[place]
    self.left -= document.left
    piece = document.take(positions, patches)
    if document.left:
      self._insert(document)
    else:
      self._by_age.remove(document)
    return piece

  def find_partner(self, patch_size: float) -> OpenDocument | None:
    """A document that makes up for the oldest where the mean is to be `patch_size`.

    It lies on the other side of the mean, as far from it as the oldest or a little
    farther, so that the oldest gets at least half of the patches; failing that, the
    farthest.
    """
    opposite = 2 * patch_size - self.oldest.patch_size
    if opposite < patch_size:
      place = bisect.bisect(self._keys, (opposite, self.oldest.index))
      partner = self._by_size[max(place - 1, 0)]
      return partner if partner.patch_size < patch_size else None
    place = bisect.bisect_left(self._keys, (opposite, self.oldest.index))
    partner = self._by_size[min(place, len(self._keys) - 1)]
    return partner if partner.patch_size > patch_size else None
