"""Some documents for training, some to look at: divided by content, equal ones together."""

import hashlib
from collections.abc import Callable, Sequence

import grain
import numpy as np

from blt_jax.data.reading.documents import Document

_TOO_LITTLE = (
  "The data has too little different text to hold some out; give more, or a file of its own "
  "in config.data.heldout_path."
)


def hold_out(
  dataset: grain.MapDataset, fraction: float, file_ids: np.ndarray | None = None
) -> tuple[grain.MapDataset, grain.MapDataset]:
  """Divides documents in (training, held-out); reads them all once.

  Args:
    dataset: of documents.
    fraction: how many to hold out, about; one at least stays on either side.
    file_ids: int [len(dataset)], the file that each is from, to divide whole files.

  Raises:
    ValueError: fewer than two different documents.
  """
  ids = np.arange(len(dataset)) if file_ids is None else file_ids
  ranks = _rank_groups(dataset, ids.tolist())
  ordered = sorted(set(ranks.values()))
  if len(ordered) < 2:
    raise ValueError(_TOO_LITTLE)
  limit = min(max(_limit(fraction), ordered[0]), ordered[-2])
  train = [i for i, group in enumerate(ids.tolist()) if ranks.get(group, -1) > limit]
  heldout = [i for i, group in enumerate(ids.tolist()) if 0 <= ranks.get(group, -1) <= limit]
  return _Selection(dataset, train), _Selection(dataset, heldout)


def hold_out_of_stream(
  stream: grain.IterDataset, fraction: float
) -> tuple[grain.IterDataset, grain.IterDataset]:
  """The same for a stream, while it is read: each side reads all of it.

  Raises:
    ValueError: one of the sides has no document.
  """
  limit = _limit(fraction)
  train = _filter(stream, lambda document: rank(document.text) > limit)
  heldout = _filter(stream, lambda document: rank(document.text) <= limit)
  if any(next(iter(side), None) is None for side in (train, heldout)):
    raise ValueError(_TOO_LITTLE)
  return train, heldout


def rank(text: bytes) -> int:
  """A number in [0, 2**64) that depends on the text only."""
  return _to_int(hashlib.sha256(text))


def _to_int(digest: "hashlib._Hash") -> int:
  return int.from_bytes(digest.digest()[:8], "big")


def _limit(fraction: float) -> int:
  return int(fraction * 2**64)


def _rank_groups(dataset: grain.MapDataset, groups: Sequence[int]) -> dict[int, int]:
  """Maps each group to the rank of the text of its documents, one after another."""
  hashes: dict[int, hashlib._Hash] = {}
  for index, group in enumerate(groups):
    document = dataset[index]
    if document is not None:
      hashes.setdefault(group, hashlib.sha256()).update(document.text)
  return {group: _to_int(digest) for group, digest in hashes.items()}


def _filter(
  stream: grain.IterDataset, keep: Callable[[Document], bool]
) -> grain.IterDataset[Document]:
  options = grain.experimental.DatasetOptions(filter_warn_threshold_ratio=None)
  return grain.experimental.WithOptionsIterDataset(stream.filter(keep), options)


class _Selection(grain.MapDataset[Document]):
  """Some elements of a dataset."""

  def __init__(self, dataset: grain.MapDataset, indices: Sequence[int]):
    super().__init__(dataset)
    self._indices = np.array(indices, np.int64)

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index):
    if isinstance(index, slice):
      return self.slice(index)
    return self.parents[0][int(self._indices[index % len(self)])]
