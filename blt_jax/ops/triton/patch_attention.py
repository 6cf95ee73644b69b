"""Attention of a few bytes to the vectors of their patches, on an NVIDIA GPU."""

import functools

import jax
import jax.numpy as jnp

from blt_jax.ops.online_softmax import LOG2_E
from blt_jax.ops.triton import matvec as gpu_matvec


def fits_read(query: jax.Array, size: int) -> bool:
  """Whether `read_patches` takes queries [B, C, 1, G, R, H] and gives vectors of `size`."""
  batch, length, _, heads, repeats, head_dim = query.shape
  return repeats == 1 and gpu_matvec.fits_heads(batch * length, heads, head_dim, size)


def read_patches(
  query: jax.Array,
  patches: jax.Array,
  ids: jax.Array,
  matrix: jax.Array,
  residual: jax.Array,
  first: jax.Array | None = None,
  *,
  window: int,
  factor: float,
  interpret: bool = False,
) -> jax.Array:
  """Each byte attends to the vectors of its newest patches, and a matrix follows.

  Args:
    query: [B, C, 1, N, 1, H].
    patches: [B, M, S, 2, N, H] keys and values of the vectors of each patch.
    ids: int32 [B, C], the newest patch that each byte reads, 0 or more.
    matrix: [D, N H].
    residual: [B, C, D], of which `factor` times is added.
    first: int32 [B, C], the oldest patch that each byte's window may reach; None for 0.
    window: how many patches a byte reads.
    factor: see `residual`.
    interpret: run as plain jax, for tests.

  Returns:
    [B, C, D] in the dtype of `residual`.
  """
  batch, length, _, heads, _, head_dim = query.shape
  number = batch * length
  bounds = [x.reshape(number) for x in (ids, first) if x is not None]
  inputs = query.reshape(number, heads, head_dim), patches, *bounds
  mix = functools.partial(_mix, length=length, window=window)
  flat = residual.reshape(number, -1)
  out = gpu_matvec.heads_matvec(mix, inputs, matrix, flat, head_dim, factor, interpret)
  return out.reshape(residual.shape)


def _mix(i, heads, query_ref, patch_ref, id_ref, first_ref=None, *, length, window):
  _, num_patches, slots, _, _, head_dim = patch_ref.shape
  newest = jnp.minimum(id_ref[i], num_patches - 1)
  first = 0 if first_ref is None else first_ref[i]
  query, masks, loaded = query_ref[i, heads, :], [], []
  for back in range(window):
    patch = jnp.maximum(newest - back, 0)
    mask = jnp.minimum(newest - back - first, 0).astype(jnp.float32) * 1e30
    for slot in range(slots):
      masks.append(mask)
      loaded.append([patch_ref[i // length, patch, slot, which, heads, :] for which in (0, 1)])

  def mix():
    scaled = query.astype(jnp.float32) * head_dim**-0.5 * LOG2_E
    keys, values = ([x.astype(jnp.float32) for x in xs] for xs in zip(*loaded, strict=True))
    scores = [(k * scaled).sum(axis=1) + m for k, m in zip(keys, masks, strict=True)]
    highest = functools.reduce(jnp.maximum, scores)
    weights = [jnp.exp2(score - highest) for score in scores]
    total = functools.reduce(jnp.add, weights)
    mixed = [w[:, None] * v for w, v in zip(weights, values, strict=True)]
    return functools.reduce(jnp.add, mixed) / total[:, None]

  return mix
