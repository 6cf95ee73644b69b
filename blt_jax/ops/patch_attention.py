"""Bytes to patches and back: cross-attention and pooling in O(S * K * D).

A patch sees its own bytes and a byte sees the K vectors of one patch, so everything is
a gather from patches to bytes or a sum over the bytes of a patch, never a [P, S] matrix.
Patches without bytes yield zeros. Reference: Meta `model/blt.py`, `model/utils.py`.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from blt_jax.ops import device, heads
from blt_jax.ops.triton import bytes_attend as bytes_kernel
from blt_jax.ops.triton import patch_pool, patch_sum
from blt_jax.ops.triton import patches_attend as patches_kernel

_POOLS = {
  "avg": patch_pool.MEAN,
  "mean": patch_pool.MEAN,
  "min": patch_pool.LEAST,
  "max": patch_pool.LARGEST,
}


def has_kernels() -> bool:
  """Whether bytes and patches have kernels on the mesh in force.

  A kernel is not divided over devices: with several, call these functions on each
  device's shard.
  """
  return device.kernels() == "triton"


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def expand(patch_values: jax.Array, ids: jax.Array, is_sorted: bool = True) -> jax.Array:
  """Gives each byte the value of a patch: [B, P, ...] by ids [B, S] -> [B, S, ...]."""
  del is_sorted
  return jax.vmap(lambda values, rows: values.at[rows].get(mode="clip"))(patch_values, ids)


def _expand_forward(patch_values, ids, is_sorted):
  return expand(patch_values, ids, is_sorted), (ids, patch_values.shape[1])


def _expand_backward(is_sorted, residuals, gradient):
  ids, num_patches = residuals
  if is_sorted and has_kernels() and patch_sum.fits(gradient):
    return patch_sum.reduce_sum(gradient, ids, num_patches), None
  # The transpose of a gather does not know that ids are sorted and sums in the dtype
  # of the values; this sum does neither.
  summed = reduce_sum(gradient.astype(jnp.float32), ids, num_patches, is_sorted)
  return summed.astype(gradient.dtype), None


expand.defvjp(_expand_forward, _expand_backward)


def reduce_sum(
  byte_values: jax.Array, ids: jax.Array, num_patches: int, is_sorted: bool = True
) -> jax.Array:
  """Sums over the bytes of each patch: [B, S, ...] by ids [B, S] -> [B, P, ...]."""
  return _segments(jax.ops.segment_sum, byte_values, ids, num_patches, is_sorted)


def _segments(
  reduction: Callable[..., jax.Array],
  byte_values: jax.Array,
  ids: jax.Array,
  num_patches: int,
  is_sorted: bool = True,
) -> jax.Array:
  """Reduces the bytes of each patch: [B, S, ...] by ids [B, S] -> [B, P, ...]."""
  reduce_row = functools.partial(
    reduction, num_segments=num_patches, indices_are_sorted=is_sorted
  )
  return jax.vmap(reduce_row)(byte_values, ids)


def pool(byte_states: jax.Array, ids: jax.Array, num_patches: int, modes: str) -> jax.Array:
  """Pools the states of each patch's bytes.

  Args:
    byte_states: [B, S, D].
    ids: int [B, S] patch of each byte, non-decreasing along S.
    num_patches: P, static.
    modes: any of "avg" (or "mean"), "min", "max", joined by "_": several are
      concatenated along the features in this order. The gradient of a maximum is shared
      evenly by the bytes that attain it.

  Returns:
    [B, P, D * number of modes] in the dtype of `byte_states`; zeros for empty patches.
  """
  if has_kernels() and patch_pool.fits(byte_states):
    parts = tuple(sorted(_POOLS[mode] for mode in modes.split("_")))
    return patch_pool.pool(byte_states, ids, num_patches, parts)
  states = byte_states.astype(jnp.float32)
  count = reduce_sum(jnp.ones((*ids.shape, 1)), ids, num_patches)
  pooled = []
  if "avg" in modes or "mean" in modes:
    pooled.append(reduce_sum(states, ids, num_patches) / jnp.maximum(count, 1))
  if "min" in modes:
    pooled.append(-_segments(jax.ops.segment_max, -states, ids, num_patches))
  if "max" in modes:
    pooled.append(_segments(jax.ops.segment_max, states, ids, num_patches))
  # `where` on the result alone is safe: empty segments pass no gradient on.
  return jnp.where(count > 0, jnp.concatenate(pooled, -1), 0).astype(byte_states.dtype)


def patches_attend(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  patch_ids: jax.Array,
  window: int | None = None,
  patch_documents: jax.Array | None = None,
) -> jax.Array:
  """Cross-attention of the encoder: the vectors of a patch read the patch's bytes.

  Args:
    query: [B, P, K, N, H].
    key: [B, S, G, H]; each of the G heads serves N / G adjacent query heads.
    value: [B, S, G, H].
    patch_ids: int [B, S], non-decreasing along S.
    window: a patch reads the bytes of this many patches, itself and those before;
      None is 1.
    patch_documents: int [B, P], the document of each patch, whose window stays inside it;
      None where documents do not matter.

  Returns:
    [B, P, K, N, H] in the dtype of `query`, zeros for empty patches; softmax in float32.
  """
  batch, num_patches, slots, num_heads, head_dim = query.shape
  window = window or 1
  if window == 1 and has_kernels() and patches_kernel.fits(query, key):
    return patches_kernel.attend(query, key, value, patch_ids)
  in_order = window == 1
  # A byte stands once for each patch that reads it; ids past the end are dropped.
  ids = jnp.concatenate([patch_ids + i for i in range(window)], axis=1)
  if patch_documents is not None and window > 1:
    same = _in_document(patch_documents, ids, jnp.tile(patch_ids, (1, window)))
    ids = jnp.where(same, ids, num_patches)
  query, key, value = (heads.side_by_side(x, num_heads) for x in (query, key, value))
  key, value = (jnp.tile(x, (1, window, 1)) for x in (key, value))

  def attend(slot):
    scores = heads.dot(expand(query[:, :, slot], ids, in_order), key, num_heads)
    return _mix(head_dim**-0.5 * scores, value, ids, num_patches, in_order)

  output = jnp.stack([attend(slot) for slot in range(slots)], axis=2).astype(query.dtype)
  return output.reshape(batch, num_patches, slots, num_heads, head_dim)


def _mix(
  scores: jax.Array, value: jax.Array, ids: jax.Array, num_patches: int, in_order: bool
) -> jax.Array:
  """Mixes a patch's values [B, S, N * H] by scores [B, S, N]: float32 [B, P, N * H]."""
  largest = _segments(jax.ops.segment_max, scores, ids, num_patches, in_order)
  # Ids past the end read an empty patch, whose maximum must not make them infinite.
  largest = jax.lax.stop_gradient(jnp.where(jnp.isfinite(largest), largest, 0))
  scores = scores - expand(largest, ids, in_order)
  if not in_order:  # nor must what is dropped become infinite, or its gradient is no number
    scores = jnp.where((ids < num_patches)[..., None], scores, 0)
  weights = jnp.exp(scores)
  total = reduce_sum(weights, ids, num_patches, in_order)
  output = reduce_sum(heads.scale(value, weights), ids, num_patches, in_order)
  return heads.scale(output, 1 / jnp.where(total > 0, total, 1))


def _in_document(documents: jax.Array, ids: jax.Array, other_ids: jax.Array) -> jax.Array:
  """Whether patches `ids` [B, S] are of the documents [B, P] of patches `other_ids` [B, S]."""
  one, other = (jnp.take_along_axis(documents, i, 1, mode="clip") for i in (ids, other_ids))
  return one == other


def bytes_attend(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  patch_ids: jax.Array,
  window: int | None = None,
  patch_documents: jax.Array | None = None,
) -> jax.Array:
  """Cross-attention of the decoder: a byte reads the vectors of one patch.

  Args:
    query: [B, S, N, H].
    key: [B, P, K, G, H]; each of the G heads serves N / G adjacent query heads.
    value: [B, P, K, G, H].
    patch_ids: int [B, S], the patch that each byte reads (`decoder_patch_ids`).
    window: a byte reads this many patches, the named one and those before; None is 1.
    patch_documents: int [B, P], the document of each patch: of a window, a byte reads those
      of the named one's document; None where documents do not matter.

  Returns:
    [B, S, N, H] in the dtype of `query`; softmax in float32.
  """
  num_heads, head_dim = query.shape[2:]
  slots = key.shape[2]
  if window in (None, 1) and has_kernels() and bytes_kernel.fits(query, key):
    return bytes_kernel.attend(query, key, value, patch_ids)
  ids = [patch_ids - i for i in range(window or 1)]
  flat, key, value = (heads.side_by_side(x, num_heads) for x in (query, key, value))

  def seen(x):
    """What each byte may see: window * K arrays [B, S, N * H]."""
    return [expand(x[:, :, slot], i) for i in ids for slot in range(slots)]

  scores = head_dim**-0.5 * jnp.stack([heads.dot(flat, k, num_heads) for k in seen(key)])
  visible = jnp.stack(ids) >= 0
  if patch_documents is not None and len(ids) > 1:
    visible &= jnp.stack([_in_document(patch_documents, i, patch_ids) for i in ids])
  visible = jnp.repeat(visible, slots, axis=0)[..., None]
  scores = jnp.where(visible, scores, jnp.finfo(jnp.float32).min)
  weights = jax.nn.softmax(scores, axis=0)
  weighted = [heads.scale(v, w) for v, w in zip(seen(value), weights, strict=True)]
  return sum(weighted[1:], weighted[0]).astype(query.dtype).reshape(query.shape)
