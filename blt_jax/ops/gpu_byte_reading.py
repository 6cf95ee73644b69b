"""Patches read their own bytes on an NVIDIA GPU: pooling and attention, of any lengths."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from blt_jax.ops import gpu_softmax
from blt_jax.ops.gpu_call import call

_BLOCK = 16  # bytes of a patch read at once
_COLUMNS = 128  # of a program that pools
_MAX_QUERIES = 8  # of a head, kept in registers


def fits_pool(buffer: jax.Array) -> bool:
  """Whether `pool` takes byte states [B, T, D]."""
  return buffer.shape[-1] % _COLUMNS == 0


def pool(
  buffer: jax.Array, starts: jax.Array, ends: jax.Array, modes: tuple[str, ...], interpret=False
) -> jax.Array:  # fmt: skip
  """Pools the bytes of each patch.

  Args:
    buffer: [B, T, D] states of bytes.
    starts: int32 [B, P], the first byte of each patch.
    ends: int32 [B, P], the byte after its last.
    modes: of "avg", "mean", "min" and "max", whose results stand side by side.
    interpret: run as plain jax, for tests.

  Returns:
    [B, P, modes D] in the dtype of `buffer`; 0 for empty patches.
  """
  (batch, number), width = starts.shape, buffer.shape[-1]
  shape = jax.ShapeDtypeStruct((batch, number, len(modes) * width), buffer.dtype)
  kernel = functools.partial(_pool_kernel, modes=modes)
  grid = (width // _COLUMNS, number, batch)
  return call(kernel, [shape], buffer, starts, ends, grid=grid, interpret=interpret)[0]


def _pool_kernel(buffer_ref, start_ref, end_ref, out_ref, *, modes):
  column, patch, row = (pl.program_id(i) for i in range(3))
  start, end = start_ref[row, patch], end_ref[row, patch]
  _, size, width = buffer_ref.shape

  def read(block, carry):
    total, least, largest = carry
    at = start + block * _BLOCK + jnp.arange(_BLOCK)
    columns = column * _COLUMNS + jnp.arange(_COLUMNS)
    states = buffer_ref[row, jnp.minimum(at, size - 1)[:, None], columns[None]]
    states, inside = states.astype(jnp.float32), (at < end)[:, None]
    return (
      total + jnp.where(inside, states, 0).sum(axis=0),
      jnp.minimum(least, jnp.where(inside, states, jnp.inf).min(axis=0)),
      jnp.maximum(largest, jnp.where(inside, states, -jnp.inf).max(axis=0)),
    )

  values = tuple(jnp.full(_COLUMNS, x, jnp.float32) for x in (0, jnp.inf, -jnp.inf))
  num_blocks = (end - start + _BLOCK - 1) // _BLOCK
  total, least, largest = jax.lax.fori_loop(0, num_blocks, read, values)
  mean = total / jnp.maximum(end - start, 1).astype(jnp.float32)
  pooled = {"avg": mean, "mean": mean, "min": least, "max": largest}
  for i, mode in enumerate(modes):
    here = pl.ds(i * width + column * _COLUMNS, _COLUMNS)
    value = jnp.where(end > start, pooled[mode], 0)
    out_ref[row, patch, here] = value.astype(out_ref.dtype)


def fits_read(query: jax.Array) -> bool:
  """Whether `read_bytes` takes queries [B, P, K, G, R, H]."""
  *_, vectors, _, repeats, head_dim = query.shape
  is_power = head_dim & (head_dim - 1) == 0 and head_dim >= 32
  return is_power and vectors * repeats <= _MAX_QUERIES


def read_bytes(
  query: jax.Array, buffer: jax.Array, starts: jax.Array, ends: jax.Array, interpret=False
) -> jax.Array:  # fmt: skip
  """Attention of the vectors of each patch to its bytes.

  Args:
    query: [B, P, K, G, R, H].
    buffer: [B, T, 2, G, H], keys and values of bytes.
    starts: int32 [B, P], the first byte that each patch reads.
    ends: int32 [B, P], the byte after the last.
    interpret: run as plain jax, for tests.

  Returns:
    [B, P, K, G, R, H] in the dtype of `query`; 0 for empty patches.
  """
  batch, number, _, groups, _, _ = query.shape
  shape = jax.ShapeDtypeStruct(query.shape, query.dtype)
  grid = (groups, number, batch)
  options = {"grid": grid, "num_warps": 1, "interpret": interpret}
  return call(_read_kernel, [shape], query, buffer, starts, ends, **options)[0]


def _read_kernel(query_ref, buffer_ref, start_ref, end_ref, out_ref):
  group, patch, row = (pl.program_id(i) for i in range(3))
  start, end = start_ref[row, patch], end_ref[row, patch]
  _, _, vectors, _, repeats, head_dim = query_ref.shape
  size = buffer_ref.shape[1]
  heads = [(vector, repeat) for vector in range(vectors) for repeat in range(repeats)]
  scale = head_dim**-0.5 * gpu_softmax.LOG2_E
  queries = [
    query_ref[row, patch, vector, group, repeat, :].astype(jnp.float32) * scale
    for vector, repeat in heads
  ]

  def read(block, states):
    at = start + block * _BLOCK + jnp.arange(_BLOCK)
    key, value = (
      buffer_ref[
        row, jnp.minimum(at, size - 1)[:, None], which, group, jnp.arange(head_dim)[None]
      ].astype(jnp.float32)
      for which in (0, 1)
    )
    return tuple(
      gpu_softmax.add(
        state, jnp.where(at < end, (key * query[None]).sum(axis=1), gpu_softmax.MASKED), value
      )
      for query, state in zip(queries, states, strict=True)
    )

  nothing = (gpu_softmax.nothing(head_dim),) * len(heads)
  states = jax.lax.fori_loop(0, (end - start + _BLOCK - 1) // _BLOCK, read, nothing)
  for (vector, repeat), (_, total, mixed) in zip(heads, states, strict=True):
    mixed = mixed / jnp.where(total > 0, total, 1)
    out_ref[row, patch, vector, group, repeat, :] = mixed.astype(out_ref.dtype)
