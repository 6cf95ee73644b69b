"""Some documents for training, some to look at: divided by content, equal ones together."""

import hashlib
from collections.abc import Callable, Sequence

import grain
import numpy as np
from absl import logging

from blt_jax.data.reading.documents import Document
from blt_jax.parallel import distributed

# Hashed before each text: corpora are often subsampled by plain hashes of their documents, and
# all that is left of them would be held out.
SALT = "blt_jax held out "
NO_SALT = ""  # of runs from before there was one

# The start of a stream: until 50 documents of the rarer side are expected, or 32 MB of text.
_SAMPLE_DOCUMENTS, _SAMPLE_BYTES = 50, 32 << 20
# So many documents expected of a side that shows none: by chance in 1 of 1e13 corpora. Equal
# documents count less, and are not read for ever either.
_PATIENCE, _EQUAL = 30, 1 / 30
_TOO_LITTLE = (
  "too little different text to hold some out; give more, or a file of its own in "
  "config.data.heldout_path."
)


def hold_out(
  dataset: grain.MapDataset,
  fraction: float,
  file_ids: np.ndarray | None = None,
  salt: str = SALT,
  name: str = "The data",
) -> tuple[grain.MapDataset, grain.MapDataset]:
  """Divides documents in (training, held-out); reads them all once, and says their shares.

  Args:
    dataset: of documents.
    fraction: how many to hold out, about; one at least stays on either side.
    file_ids: int [len(dataset)], the file that each is from, to divide whole files.
    salt: another one holds out other documents.
    name: of the source, for messages.

  Raises:
    ValueError: fewer than two different documents.
  """
  ids = np.arange(len(dataset)) if file_ids is None else file_ids
  ranks, sizes = _read_ranks(dataset, ids.tolist(), salt)
  ordered = sorted(set(ranks.values()))
  if len(ordered) < 2:
    raise ValueError(f"{name} has {_TOO_LITTLE}")
  limit = min(max(_limit(fraction), ordered[0]), ordered[-2])
  is_heldout = np.array([ranks.get(group, 0) <= limit for group in ids.tolist()])
  sides = [np.flatnonzero((sizes >= 0) & side) for side in (~is_heldout, is_heldout)]
  _report(name, fraction, np.array([(len(side), sizes[side].sum()) for side in sides]))
  return _Selection(dataset, sides[0]), _Selection(dataset, sides[1])


def hold_out_of_stream(
  stream: grain.IterDataset, fraction: float, salt: str = SALT, name: str = "The data"
) -> tuple[grain.IterDataset, grain.IterDataset]:
  """The same for a stream, while it is read: each side reads all of it.

  Only its start is looked at before, and the shares are those of its start.

  Raises:
    ValueError: one of the sides has no document there.
  """
  limit = _limit(fraction)
  counts = _count_start(stream, fraction, salt)
  if not counts[:, 0].all():
    raise ValueError(
      f"{name}: {counts[1, 0]:,} of the first {counts[:, 0].sum():,} documents would be held "
      f"out (config.data.heldout_fraction {fraction:.3g}): {_TOO_LITTLE}"
    )
  _report(f"Start of {name}", fraction, counts, judge_bytes=False)  # those of few documents
  train = _filter(stream, lambda document: rank(document.text, salt) > limit)
  heldout = _filter(stream, lambda document: rank(document.text, salt) <= limit)
  return train, heldout


def rank(text: bytes, salt: str = SALT) -> int:
  """A number in [0, 2**64) that depends on text and salt only."""
  return _to_int(hashlib.sha256(salt.encode() + text))


def _to_int(digest: "hashlib._Hash") -> int:
  return int.from_bytes(digest.digest()[:8], "big")


def _limit(fraction: float) -> int:
  return int(fraction * 2**64)


def _read_ranks(
  dataset: grain.MapDataset, groups: Sequence[int], salt: str
) -> tuple[dict[int, int], np.ndarray]:
  """The rank of each group's documents, one after another; and the bytes of each document.

  -1 bytes stand for no document.
  """
  hashes: dict[int, hashlib._Hash] = {}
  sizes = np.full(len(dataset), -1)
  for index, group in enumerate(groups):
    document = dataset[index]
    if document is not None:
      hashes.setdefault(group, hashlib.sha256(salt.encode())).update(document.text)
      sizes[index] = len(document.text)
  return {group: _to_int(digest) for group, digest in hashes.items()}, sizes


def _count_start(stream: grain.IterDataset, fraction: float, salt: str) -> np.ndarray:
  """Documents and bytes of (training, held-out) at the start: int [2, 2].

  Reads until both sides are well seen, or one of them seems to be empty.
  """
  counts = np.zeros((2, 2), np.int64)
  limit, rarer = _limit(fraction), min(fraction, 1 - fraction)
  different, last = 0.0, -1
  for document in stream if rarer > 0 else ():
    number = rank(document.text, salt)
    counts[int(number <= limit)] += 1, len(document.text)
    different += 1 if number != last else _EQUAL
    last, expected, has_both = number, different * rarer, counts[:, 0].all()
    if has_both and (expected >= _SAMPLE_DOCUMENTS or counts[:, 1].sum() >= _SAMPLE_BYTES):
      break
    if not has_both and expected >= _PATIENCE:
      break
    logging.log_every_n_seconds(logging.INFO, "Looking for text to hold out.", 10)
  return counts


def _report(name: str, fraction: float, counts: np.ndarray, judge_bytes: bool = True) -> None:
  """Says what share is held out, and warns if it is far from the one wanted.

  Args:
    name: of the source.
    fraction: wanted.
    counts: documents and bytes of (training, held-out), int [2, 2].
    judge_bytes: whether the share of bytes must be right too.
  """
  if not distributed.is_lead():
    return
  total = counts.sum(axis=0)
  shares = counts[1] / np.maximum(total, 1)
  text = (
    f"{name}: held out are {counts[1, 0]:,} of {total[0]:,} documents ({shares[0]:.1%}) and "
    f"{counts[1, 1]:,} of {total[1]:,} bytes ({shares[1]:.1%})"
  )
  judged = shares if judge_bytes else shares[:1]
  if ((judged >= fraction / 2) & (judged <= fraction * 2)).all():
    logging.info("%s.", text)
    return
  logging.warning(
    "%s; config.data.heldout_fraction is %s, more than a factor of two off. Another "
    "config.data.heldout_salt draws other documents, and config.data.heldout_path takes "
    "held-out text of its own.",
    text,
    f"{fraction:.1%}",
  )


def _filter(
  stream: grain.IterDataset, keep: Callable[[Document], bool]
) -> grain.IterDataset[Document]:
  options = grain.experimental.DatasetOptions(filter_warn_threshold_ratio=None)
  return grain.experimental.WithOptionsIterDataset(stream.filter(keep), options)


class _Selection(grain.MapDataset[Document]):
  """Some elements of a dataset."""

  def __init__(self, dataset: grain.MapDataset, indices: np.ndarray):
    super().__init__(dataset)
    self._indices = indices

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index):
    if isinstance(index, slice):
      return self.slice(index)
    return self.parents[0][int(self._indices[index % len(self)])]
