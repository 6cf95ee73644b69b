"""Documents to batches, with Grain: patched, packed and resumable."""

import dataclasses
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from blt_jax.data.packing import PackRows
from blt_jax.data.transforms import PatchDocument

Batch = dict[str, np.ndarray]

# One thread reads ahead: documents are small, and the accelerator is the bottleneck.
_READ = grain.ReadOptions(num_threads=1, prefetch_buffer_size=8)


@dataclasses.dataclass(frozen=True)
class BatchShape:
  """The static sizes of a batch: B rows of S bytes and P patches."""

  batch_size: int
  seq_len: int
  num_patches: int


def training_batches(
  documents: Sequence[bytes], patch: PatchDocument, shape: BatchShape, seed: int
) -> grain.DatasetIterator:
  """Endless batches, shuffled anew in each epoch.

  The order depends on `seed` only. `get_state` and `set_state` of the iterator resume
  with the very next batch.

  Args:
    documents: raw documents.
    patch: how they are patched.
    shape: of the batches.
    seed: of the shuffle.

  Returns:
    Iterator over dicts: `tokens`, `targets` int32 [B, S], `loss_mask` bool [B, S],
    `patch_lengths` int32 [B, P].
  """
  source = grain.MapDataset.source(documents).seed(seed).shuffle().repeat().map(patch)
  rows = PackRows(source.to_iter_dataset(_READ), shape.seq_len, shape.num_patches)
  return iter(rows.batch(shape.batch_size, drop_remainder=True))


def evaluation_batches(
  documents: Sequence[bytes], patch: PatchDocument, shape: BatchShape
) -> Iterator[Batch]:
  """One pass over all documents in order; the last batch is filled with empty rows."""
  source = grain.MapDataset.source(documents).map(patch)
  rows = PackRows(source.to_iter_dataset(_READ), shape.seq_len, shape.num_patches)
  for batch in rows.batch(shape.batch_size, drop_remainder=False):
    yield _fill(batch, shape.batch_size)


def _fill(batch: Batch, batch_size: int) -> Batch:
  missing = batch_size - len(batch["tokens"])
  full = {k: np.pad(v, ((0, missing), (0, 0))) for k, v in batch.items()}
  if missing:
    full["patch_lengths"][-missing:, :2] = (1, batch["tokens"].shape[1])
  return full
