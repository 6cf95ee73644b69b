"""How many documents a step learns from, and how many of them the step before had."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from blt_jax.parallel import sharding

Batch = dict[str, jax.Array]


class DocumentCounter:
  """Counts the documents of each batch, over all hosts, without waiting for the result."""

  def __init__(self, mesh: Mesh, num_streams: int):
    """Takes where batches are, and how many streams of documents they come from."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    count = functools.partial(_count, num_streams=num_streams)
    self._count = sharding.jit(count, mesh, out_shardings=everywhere)
    self._before: jax.Array | None = None

  def __call__(self, batch: Batch) -> dict[str, jax.Array]:
    """Takes `documents` and `open_documents` out of a batch; see `packing.rows.PackRows`.

    Returns:
      float32 scalars: `documents`, different ones in the batch; `documents_repeated`, those
      of them that the batch before held, none in the first one; `documents_open`, which
      rows were filled from; and for means, `batches`, 1, and `rows`.
    """
    documents = batch.pop("documents")
    counts = self._count(documents, self._before, batch.pop("open_documents"))
    self._before = documents
    return counts


def _count(
  documents: jax.Array, before: jax.Array | None, num_open: jax.Array, num_streams: int
) -> dict[str, jax.Array]:
  """Counts int32 [B, D] names, 0 for none, and means int32 [B, 1] open ones of a stream."""
  names = jnp.sort(documents, axis=None)  # [B * D]
  is_first = jnp.diff(names, prepend=0) > 0
  is_repeated = is_first & (False if before is None else jnp.isin(names, before))
  counts = {
    "documents": is_first.sum(),
    "documents_repeated": is_repeated.sum(),
    "documents_open": num_open.mean() * num_streams,
    "batches": jnp.ones(()),
    "rows": jnp.array(documents.shape[0]),
  }
  return {name: count.astype(jnp.float32) for name, count in counts.items()}
