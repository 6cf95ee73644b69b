"""How many documents a step learns from, and how many of them the step before had."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from blt_jax import sharding

Batch = dict[str, jax.Array]


class DocumentCounter:
  """Counts the documents of each batch, over all hosts, without waiting for the result."""

  def __init__(self, mesh: Mesh, num_streams: int):
    """Takes where batches are, and how many streams of documents they come from."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    self._count = sharding.jit(_count, mesh, out_shardings=everywhere)
    self._num_streams = num_streams
    self._before: jax.Array | None = None

  def __call__(self, batch: Batch) -> dict[str, jax.Array]:
    """Takes `documents` and `open_documents` out of a batch; see `packing.PackRows`.

    Returns:
      float32 scalars: `documents`, different ones in the batch; `documents_repeated`, those
      of them that the batch before held, none in the first one; `documents_open`, that rows
      were filled from; and for means, `batches`, 1, and `rows`.
    """
    documents = batch.pop("documents")
    before = jnp.zeros_like(documents) if self._before is None else self._before
    self._before = documents
    counts = self._count(documents, before, batch.pop("open_documents"))
    return counts | {"documents_open": counts["documents_open"] * self._num_streams}


def _count(
  documents: jax.Array, before: jax.Array, num_open: jax.Array
) -> dict[str, jax.Array]:
  """Counts of int32 [B, D] names, 0 for none, and of int32 [B, 1] open documents."""
  names = jnp.sort(documents, axis=None)  # [B * D]
  is_first = (names != jnp.roll(names, 1).at[0].set(0)) & (names != 0)
  is_repeated = is_first & jnp.isin(names, before)
  counts = {
    "documents": is_first.sum(),
    "documents_repeated": is_repeated.sum(),
    "documents_open": num_open.mean(),
    "batches": jnp.ones(()),
    "rows": jnp.array(documents.shape[0]),
  }
  return {name: count.astype(jnp.float32) for name, count in counts.items()}
