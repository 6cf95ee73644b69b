"""Patches from the bytes of each, on an NVIDIA GPU.

The loops over bytes are inside the kernels: with one of XLA, the host would be asked at
each turn, and all that comes before and after could not be one graph.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from blt_jax.ops import online_softmax
from blt_jax.ops.triton.call import call, fits_head

_BLOCK = 16  # bytes read at once
_COLUMNS = 256  # of the states, of a program
_MAX_QUERIES = 8  # of one key head, kept in registers
_POOLS = {"avg": 0, "mean": 0, "min": 1, "max": 2}


def fits_pool(states: jax.Array) -> bool:
  """Whether `pool` takes states [B, T, D]."""
  return states.shape[1] >= _BLOCK and states.shape[2] % _COLUMNS == 0


def pool(
  states: jax.Array, starts: jax.Array, ends: jax.Array, modes: str, interpret: bool = False
) -> jax.Array:
  """Pools bytes `starts` to `ends` - 1 of a row.

  Args:
    states: [B, T, D].
    starts: int32 [B, P].
    ends: int32 [B, P], no less than `starts`.
    modes: as in `patch_attention.pool`.
    interpret: run as plain jax, for tests.

  Returns:
    [B, P, D * number of modes] in the dtype of `states`; zeros for empty patches.
  """
  dim, parts = states.shape[2], sorted(_POOLS[mode] for mode in modes.split("_"))
  shape = jax.ShapeDtypeStruct((starts.size, len(parts) * dim), states.dtype)
  kernel = functools.partial(_pool_kernel, per_row=starts.shape[1], parts=parts)
  grid = (starts.size, dim // _COLUMNS)
  arrays = states, starts.reshape(-1), ends.reshape(-1)
  pooled = call(kernel, [shape], *arrays, grid=grid, interpret=interpret)[0]
  return pooled.reshape(*starts.shape, -1)


def _pool_kernel(state_ref, start_ref, end_ref, out_ref, *, per_row, parts):
  patch, first_column = pl.program_id(0), pl.program_id(1) * _COLUMNS
  row, start, end = patch // per_row, start_ref[patch], end_ref[patch]

  def add(here, inside, carry):
    total, least, largest = carry
    states = state_ref[row, here, pl.ds(first_column, _COLUMNS)].astype(jnp.float32)
    inside = inside[:, None]
    return (
      total + jnp.where(inside, states, 0).sum(axis=0),
      jnp.minimum(least, jnp.where(inside, states, jnp.inf).min(axis=0)),
      jnp.maximum(largest, jnp.where(inside, states, -jnp.inf).max(axis=0)),
    )

  carry = tuple(jnp.full(_COLUMNS, value, jnp.float32) for value in (0, jnp.inf, -jnp.inf))
  total, *extremes = _over_bytes(start, end, state_ref.shape[1], add, carry)
  count = jnp.maximum(end - start, 1).astype(jnp.float32)
  pooled = total / count, *extremes
  for i, part in enumerate(parts):
    values = jnp.where(end > start, pooled[part], 0).astype(out_ref.dtype)
    out_ref[patch, pl.ds(i * state_ref.shape[2] + first_column, _COLUMNS)] = values


def fits_attend(query: jax.Array, keys_and_values: jax.Array) -> bool:
  """Whether `attend` takes queries [B, P, K, G, R, H] and [B, T, 2, G, H]."""
  _, _, slots, _, repeats, head_dim = query.shape
  has_room = keys_and_values.shape[1] >= _BLOCK
  return slots * repeats <= _MAX_QUERIES and fits_head(head_dim) and has_room


def attend(
  query: jax.Array,
  keys_and_values: jax.Array,
  starts: jax.Array,
  ends: jax.Array,
  interpret: bool = False,
) -> jax.Array:
  """The vectors of a patch read bytes `starts` to `ends` - 1 of its row.

  Args:
    query: [B, P, K, G, R, H].
    keys_and_values: [B, T, 2, G, H].
    starts: int32 [B, P].
    ends: int32 [B, P], no less than `starts`.
    interpret: run as plain jax, for tests.

  Returns:
    Mixed values in the shape and dtype of `query`; zeros where there are no bytes.
  """
  flat = query.reshape(starts.size, *query.shape[2:])
  kernel = functools.partial(_attend_kernel, per_row=starts.shape[1])
  shape = jax.ShapeDtypeStruct(flat.shape, flat.dtype)
  arrays = flat, keys_and_values, starts.reshape(-1), ends.reshape(-1)
  grid = (flat.shape[2], starts.size)
  return call(kernel, [shape], *arrays, grid=grid, interpret=interpret)[0].reshape(query.shape)


def _attend_kernel(query_ref, read_ref, start_ref, end_ref, out_ref, *, per_row):
  group, patch = pl.program_id(0), pl.program_id(1)
  row, (_, slots, _, repeats, head_dim) = patch // per_row, query_ref.shape
  at = [(patch, slot, group, r, slice(None)) for slot in range(slots) for r in range(repeats)]
  scale = head_dim**-0.5 * online_softmax.LOG2_E
  queries = [query_ref[i].astype(jnp.float32) * scale for i in at]

  def add(here, inside, states):
    key, value = (read_ref[row, here, i, group, :].astype(jnp.float32) for i in (0, 1))
    scores = [
      jnp.where(inside, (key * query[None]).sum(axis=1), online_softmax.MASKED)
      for query in queries
    ]
    return tuple(
      online_softmax.add_row(state, score, value)
      for state, score in zip(states, scores, strict=True)
    )

  states = (online_softmax.nothing((), head_dim),) * len(queries)
  states = _over_bytes(start_ref[patch], end_ref[patch], read_ref.shape[1], add, states)
  for i, (_, total, mixed) in zip(at, states, strict=True):
    out_ref[i] = (mixed / jnp.where(total > 0, total, 1)).astype(out_ref.dtype)


def _over_bytes(start, end, length, add, carry):
  """Calls `add` with slices of a row of `length`, whether each byte counts, and the carry."""

  def step(block, carry):
    first = start + block * _BLOCK
    here = jnp.minimum(first, length - _BLOCK)
    at = here + jnp.arange(_BLOCK)
    return add(pl.ds(here, _BLOCK), (at >= first) & (at < end), carry)

  return jax.lax.fori_loop(0, (end - start + _BLOCK - 1) // _BLOCK, step, carry)
