"""Layers over a few new positions, the rest being in caches.

On one NVIDIA GPU, each is a kernel or two where they take its arguments. Matrices are
[out, in].
"""

import jax
import jax.numpy as jnp
import numpy as np

from blt_jax.ops import device, norm, rope
from blt_jax.ops.masked_attention import blockwise_attention, masked_attention
from blt_jax.ops.ring_attention import ring_attention
from blt_jax.ops.triton import matvec
from blt_jax.ops.triton import norm as gpu_norm
from blt_jax.ops.triton import patch_attention as gpu_patch_attention
from blt_jax.ops.triton import patch_encoder as gpu_patch_encoder
from blt_jax.ops.triton import ring_attention as gpu_ring_attention
from blt_jax.ops.triton.call import COMPILER_OPTIONS as COMPILER_OPTIONS
from blt_jax.ops.triton.call import overlap as overlap
from blt_jax.ops.triton.call import retain as retain

_BYTES = 16  # of a patch, read at once


def has_kernels() -> bool:
  """Whether layers may be kernels here."""
  return device.decodes_by_kernels()


def take(values: jax.Array, ids: jax.Array) -> jax.Array:
  """Looks up values [B, T, ...] at ids [B, ...], the nearest where out of range."""
  return jax.vmap(lambda rows, at: rows.at[at].get(mode="clip"))(values, ids)


def ring_size(size: int) -> int:
  """Slots of a ring for so many positions: long ones are whole blocks of the kernel's."""
  block = gpu_ring_attention.BLOCK
  return size if size <= block else -(-size // block) * block


def linear(x: jax.Array, matrix: jax.Array) -> jax.Array:
  """Multiplies x [..., in] by a matrix [out, in]; the result has the dtype of x."""
  flat = x.reshape(-1, x.shape[-1])
  if _on_gpu(matvec.fits_matvec(flat, len(matrix))):
    flat = matvec.matvec(flat, matrix)
  else:
    flat = jnp.dot(flat, matrix.astype(x.dtype).T)
  return flat.reshape(*x.shape[:-1], -1)


def norm_linear(
  x: jax.Array, scale: jax.Array, epsilon: float, matrix: jax.Array, is_gated: bool = False
) -> jax.Array:
  """Normalises x [..., in] and multiplies it by a matrix [out, in].

  With `is_gated`, silu of the first half of the result times the second half.
  """
  flat, size = x.reshape(-1, x.shape[-1]), len(matrix) // (2 if is_gated else 1)
  if _on_gpu(matvec.fits_matvec(flat, size)):
    y = matvec.matvec(flat, matrix, scale=scale, epsilon=epsilon, is_gated=is_gated)
    return y.reshape(*x.shape[:-1], -1)
  if _on_gpu(gpu_norm.fits_norm(flat)):
    normed = gpu_norm.rms_norm(flat, scale, epsilon).reshape(x.shape)
  else:
    normed = norm.rms_norm(x, scale, epsilon)
  y = retain(linear(normed, matrix))
  if not is_gated:
    return y
  gate, up = jnp.split(y, 2, axis=-1)
  return retain(jax.nn.silu(gate) * up)


def linear_add(
  residual: jax.Array, x: jax.Array, matrix: jax.Array, factor: int = 1
) -> jax.Array:
  """Adds `factor` times a residual [..., out] to x [..., in] times a matrix [out, in]."""
  flat = x.reshape(-1, x.shape[-1])
  if _on_gpu(matvec.fits_matvec(flat, len(matrix))):
    added = residual.reshape(len(flat), -1)
    y = matvec.matvec(flat, matrix, residual=added, factor=factor)
    return y.reshape(residual.shape)
  return retain(factor * residual + linear(x, matrix))


def attend_add(
  heads: jax.Array,
  num_heads: int,
  angles: tuple[jax.Array, jax.Array],
  rings: tuple[jax.Array, jax.Array],
  position: jax.Array,
  count: jax.Array,
  first: jax.Array,
  matrix: jax.Array,
  residual: jax.Array,
  window: int | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Rotates queries and keys, appends to the rings, attends, and adds to the residual.

  Args:
    heads: [B, C, N + 2 G, H], queries, keys and values of the new positions.
    num_heads: N.
    angles: see `rope.rope_angles`.
    rings: keys and values [B, R, G, H]; see `ring_attention` for these and the rest.
    position: int [B], positions that a row has seen.
    count: int [B], how many of the C are real.
    first: int [B, C], the oldest position that each may see.
    matrix: [D, N H].
    residual: [B, C, D].
    window: positions visible, or None for all.

  Returns:
    [B, C, D]; and the rings.
  """
  here = *rings, position, count, first
  if _on_gpu(gpu_ring_attention.fits_attend(heads, num_heads, rings[0], window)):
    return gpu_ring_attention.attend_add(heads, angles, *here, matrix, residual, window=window)
  query, key, value = jnp.split(heads, [num_heads, num_heads + rings[0].shape[2]], axis=2)
  query, key = rope.rotate_halves(query, angles), rope.rotate_halves(key, angles)
  mixed, keys, values = ring_attention(query, key, value, *here, window)
  mixed = mixed.reshape(*residual.shape[:2], -1)
  return residual + linear(mixed, matrix), keys, values


def read_patches(
  query: jax.Array,
  patches: jax.Array,
  ids: jax.Array,
  matrix: jax.Array,
  residual: jax.Array,
  window: int,
  first: jax.Array | None = None,
) -> jax.Array:
  """Each byte attends to its newest patches; added to twice the residual.

  Args:
    query: [B, C, 1, G, R, H].
    patches: [B, M, S, 2, G, H] keys and values of the S vectors of each patch.
    ids: int [B, C], the newest patch that each byte reads, 0 or more.
    matrix: [D, G R H].
    residual: [B, C, D].
    window: how many patches a byte reads.
    first: int [B, C], the oldest that its window may reach; None for 0.

  Returns:
    [B, C, D].
  """
  if _on_gpu(gpu_patch_attention.fits_read(query, residual.shape[-1])):
    return gpu_patch_attention.read_patches(
      query, patches, ids, matrix, residual, first, window=window, factor=2
    )
  mixed = attend_patches(query, patches, ids, window, first)
  return linear_add(residual, mixed.reshape(*ids.shape, -1), matrix, factor=2)


def attend_patches(
  query: jax.Array,
  patches: jax.Array,
  ids: jax.Array,
  window: int,
  first: jax.Array | None = None,
) -> jax.Array:
  """Mixed values [B, C, 1, G, R, H]; the arguments are those of `read_patches`."""
  ids = ids[..., None] - np.arange(window)[None, None]
  read = take(patches, jnp.maximum(ids, 0))  # [B, C, window, S, 2, G, H]
  visible = ids >= (0 if first is None else first[..., None])
  visible = jnp.repeat(visible, read.shape[3], axis=-1)
  read = read.reshape(*ids.shape[:2], -1, *read.shape[4:])  # [B, C, window S, 2, G, H]
  return masked_attention(query, read[:, :, :, 0], read[:, :, :, 1], visible[:, :, None])


def pool_bytes(buffer: jax.Array, starts: jax.Array, ends: jax.Array, modes: str) -> jax.Array:
  """Pools the bytes of each patch; see `ops.patch_attention.pool`."""
  if _on_gpu(gpu_patch_encoder.fits_pool(buffer)):
    return gpu_patch_encoder.pool(buffer, starts, ends, modes)
  shape = (*starts.shape, buffer.shape[-1])

  def add(block, carry):
    total, least, largest = carry
    states, inside = _read(buffer, starts, ends, block)
    states, inside = states.astype(jnp.float32), inside[..., None]
    return (
      total + jnp.where(inside, states, 0).sum(axis=2),
      jnp.minimum(least, jnp.where(inside, states, jnp.inf).min(axis=2)),
      jnp.maximum(largest, jnp.where(inside, states, -jnp.inf).max(axis=2)),
    )

  carry = tuple(jnp.full(shape, value, jnp.float32) for value in (0, jnp.inf, -jnp.inf))
  # As in `blockwise_attention`, the first block is always read.
  total, least, largest = jax.lax.fori_loop(1, _num_blocks(starts, ends), add, add(0, carry))
  count = (ends - starts)[..., None]
  mean = total / jnp.maximum(count, 1)
  options = (("avg", mean), ("mean", mean), ("min", least), ("max", largest))
  pooled = jnp.concatenate([x for mode, x in options if mode in modes.split("_")], axis=-1)
  return jnp.where(count > 0, pooled, 0).astype(buffer.dtype)


def attend_bytes(
  query: jax.Array, keys_and_values: jax.Array, starts: jax.Array, ends: jax.Array
) -> jax.Array:
  """The vectors of each patch read its bytes; zeros where there are none.

  Args:
    query: [B, P, K, G, R, H].
    keys_and_values: [B, T, 2, G, H] of bytes.
    starts: int [B, P], the first byte that each patch reads.
    ends: int [B, P], the byte after the last.

  Returns:
    Mixed values in the shape and dtype of `query`; softmax in float32.
  """
  if _on_gpu(gpu_patch_encoder.fits_attend(query, keys_and_values)):
    return gpu_patch_encoder.attend(query, keys_and_values, starts, ends)

  def read(block):
    states, inside = _read(keys_and_values, starts, ends, block)
    return states[..., 0, :, :], states[..., 1, :, :], inside[:, :, None]

  return blockwise_attention(query, read, _num_blocks(starts, ends))


def _num_blocks(starts: jax.Array, ends: jax.Array) -> jax.Array:
  return -(-jnp.max(ends - starts) // _BYTES)


def _read(
  buffer: jax.Array, starts: jax.Array, ends: jax.Array, block: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The next bytes of each patch: [B, P, L, ...] of [B, T, ...], whether they are its own."""
  positions = starts[..., None] + block * _BYTES + np.arange(_BYTES)[None, None]
  return take(buffer, positions), positions < ends[..., None]


def _on_gpu(fits: bool) -> bool:
  """Whether to use a kernel, given that it takes the arguments."""
  return fits and has_kernels()
