"""Documents to batches, with Grain: patched, packed, resumable, prefetched."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np

from blt_jax.data import workers
from blt_jax.data.packing.rows import PackRows
from blt_jax.data.reading.documents import Dataset, Document
from blt_jax.data.transforms import DocumentPatcher

Batch = dict[str, np.ndarray]
_WAITING = 2  # batches made ahead on the host, and as many on the devices


@dataclasses.dataclass(frozen=True)
class BatchShape:
  """The static sizes of a batch, and how rows are filled.

  Attributes:
    batch_size: B, rows.
    seq_len: S, byte slots in a row.
    num_patches: P, patch slots in a row.
    pool_size: documents open at once while rows are filled; see `packing.rows.PackRows`.
    pool_bytes: of text in them; likewise.
    row_multiple: what divides S, and the positions where documents start; likewise.
    keep_whole: whether only documents longer than a row are cut; likewise.
    is_nested: whether patches have several resolutions; likewise.
  """

  batch_size: int
  seq_len: int
  num_patches: int
  pool_size: int | None = None
  pool_bytes: int | None = None
  row_multiple: int = 1
  keep_whole: bool = False
  is_nested: bool = False


def training_batches(
  documents: Dataset, patch: DocumentPatcher, shape: BatchShape, num_workers: int = 0
) -> grain.IterDataset:
  """Batches of rows; the last one, if there is one, is filled with rows without loss.

  `get_state` and `set_state` of its iterator resume with the very next batch.

  Args:
    documents: shuffled and repeated, as `mixture.mix` gives them.
    patch: how they are patched.
    shape: of the batches.
    num_workers: processes that patch; see `workers.transform`.

  Returns:
    Dataset of dicts: `tokens`, `targets` int32 [B, S], `loss_mask` bool [B, S],
    `patch_lengths` int32 [B, P], of several resolutions with their `patch_levels` [B, P], which
    `transforms.NestPatches` reads; where ids are pieces, `target_bytes` int32 [B, S], raw bytes
    of each target; and which documents these are, see `packing.rows.PackRows`.
  """
  rows = PackRows(
    workers.transform(documents, patch if num_workers else _keep, num_workers),
    **dataclasses.asdict(shape),
    patch=None if num_workers else patch,
    is_slow=patch.is_slow,
  )
  if patch.sizes is None:
    return rows
  return rows.map(functools.partial(_add_target_bytes, sizes=patch.sizes))


def _add_target_bytes(batch: Batch, sizes: np.ndarray) -> Batch:
  return batch | {"target_bytes": sizes[batch["targets"]]}


def _keep(document: Document) -> Document:
  return document


def evaluation_batches(
  documents: Dataset, patch: DocumentPatcher, shape: BatchShape
) -> Iterator[Batch]:
  """One pass over all documents in order; the last batch is filled with empty rows."""
  for batch in training_batches(documents, patch, dataclasses.replace(shape, pool_size=1)):
    yield to_evaluation_batch(batch)


def to_evaluation_batch(batch: Batch, sizes: np.ndarray | None = None) -> Batch:
  """A batch without what training alone wants to know of its documents.

  Args:
    batch: of `packing.rows.PackRows`, arrays [B, ...].
    sizes: int [V], bytes of each id, to be added where ids are pieces.
  """
  kept = {key: batch[key] for key in batch.keys() - {"documents", "open_documents"}}
  return kept if sizes is None else _add_target_bytes(kept, sizes)


def prefetch(batches: grain.IterDataset, put: Callable[[Batch], Any]) -> grain.DatasetIterator:
  """Prepares batches ahead: host threads make them and put them on the devices.

  Args:
    batches: to prefetch from.
    put: places a batch on the devices.

  Returns:
    An iterator over what `put` gives. Its state is that after the last batch taken from
    it, whatever is ahead.
  """
  ahead = grain.experimental.ThreadPrefetchIterDataset
  on_host = ahead(batches, prefetch_buffer_size=_WAITING)
  return iter(ahead(on_host.map(put), prefetch_buffer_size=_WAITING))
