"""Means, minima and maxima of the bytes of each patch: forward and backward.

Letters: B batch, S bytes, P patches, D width.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from blt_jax.ops.triton import patch_intervals
from blt_jax.ops.triton.patch_intervals import load, over_bytes, store

MEAN, LEAST, LARGEST = range(3)  # parts of what comes out, in this order


def fits(states: jax.Array) -> bool:
  """Whether `pool` takes states [B, S, D]."""
  return patch_intervals.fits_width(states.shape[2])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def pool(
  states: jax.Array,
  ids: jax.Array,
  num_patches: int,
  parts: tuple[int, ...],
  interpret: bool = False,
) -> jax.Array:
  """Pools the states of each patch's bytes.

  Args:
    states: [B, S, D].
    ids: int [B, S] patch of each byte, non-decreasing along S and at least 0; bytes of
      patches from P on are in none.
    num_patches: P.
    parts: which of `MEAN`, `LEAST`, `LARGEST`, ascending. The gradient of an extreme is
      shared evenly by the bytes that attain it.
    interpret: runs on any backend, slowly.

  Returns:
    [B, P, D * number of parts] in the dtype of `states`; zeros for empty patches.
  """
  return _pool_forward(states, ids, num_patches, parts, interpret)[0]


def _pool_forward(
  states: jax.Array, ids: jax.Array, num_patches: int, parts: tuple[int, ...], interpret: bool
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
  batch, _, dim = states.shape
  starts = patch_intervals.interval_starts(ids, num_patches)
  width = patch_intervals.width_at_once(dim)
  (pooled,) = patch_intervals.call(
    functools.partial(_pool_forward_kernel, parts=parts, width=width),
    (num_patches, dim // width, batch),
    (states, starts),
    (((batch, num_patches, dim * len(parts)), states.dtype),),
    interpret,
    "patch_pool",
    width,
  )
  return pooled, (states, starts, pooled)


def _pool_backward(
  num_patches: int,
  parts: tuple[int, ...],
  interpret: bool,
  residuals: tuple[jax.Array, ...],
  gradient: jax.Array,
) -> tuple[jax.Array, None]:
  states, starts, pooled = residuals
  batch, _, dim = states.shape
  width = patch_intervals.width_at_once(dim)
  (to_states,) = patch_intervals.call(
    functools.partial(_pool_backward_kernel, parts=parts, width=width),
    (num_patches, dim // width, batch),
    (states, starts, pooled, gradient),
    ((states.shape, states.dtype),),
    interpret,
    "patch_pool_backward",
    width,
  )
  return to_states, None


pool.defvjp(_pool_forward, _pool_backward)


def _pool_forward_kernel(
  state_ref: Any, start_ref: Any, pooled_ref: Any, *, parts: tuple[int, ...], width: int
) -> None:
  patch, first_column, row = pl.program_id(0), pl.program_id(1) * width, pl.program_id(2)
  begin, end = start_ref[row, patch], start_ref[row, patch + 1]

  def add(first: Any, inside: jax.Array, carry: Any) -> Any:
    here = state_ref.at[row, pl.ds(first, patch_intervals.BLOCK), pl.ds(first_column, width)]
    states, inside = load(here, inside), inside[:, None]
    added = {
      MEAN: lambda total: total + jnp.sum(states, axis=0),
      LEAST: lambda x: jnp.minimum(x, jnp.min(jnp.where(inside, states, jnp.inf), axis=0)),
      LARGEST: lambda x: jnp.maximum(x, jnp.max(jnp.where(inside, states, -jnp.inf), axis=0)),
    }
    return tuple(added[part](x) for part, x in zip(parts, carry, strict=True))

  nothing = {MEAN: 0.0, LEAST: jnp.inf, LARGEST: -jnp.inf}
  carry = tuple(jnp.full(width, nothing[part], jnp.float32) for part in parts)
  carry = over_bytes(begin, end, add, carry)
  count = jnp.maximum(end - begin, 1).astype(jnp.float32)
  for i, (part, values) in enumerate(zip(parts, carry, strict=True)):
    values = jnp.where(end > begin, values / count if part == MEAN else values, 0)
    columns = pl.ds(i * state_ref.shape[2] + first_column, width)
    pooled_ref[row, patch, columns] = values.astype(pooled_ref.dtype)


def _pool_backward_kernel(
  state_ref: Any,
  start_ref: Any,
  pooled_ref: Any,
  gradient_ref: Any,
  to_state_ref: Any,
  *,
  parts: tuple[int, ...],
  width: int,
) -> None:
  patch, first_column, row = pl.program_id(0), pl.program_id(1) * width, pl.program_id(2)
  _, seq_len, dim = state_ref.shape
  begin, end = start_ref[row, patch], start_ref[row, patch + 1]
  columns = [pl.ds(i * dim + first_column, width) for i in range(len(parts))]
  pooled, gradients = (
    [ref[row, patch, column].astype(jnp.float32) for column in columns]
    for ref in (pooled_ref, gradient_ref)
  )

  def block(first: Any) -> tuple[Any, ...]:
    return row, pl.ds(first, patch_intervals.BLOCK), pl.ds(first_column, width)

  def shares(first: Any, inside: jax.Array) -> list[jax.Array]:
    """1 where a byte takes part in a part of what came out, 0 elsewhere: [BLOCK, width]."""
    states, inside = load(state_ref.at[*block(first)], inside), inside[:, None]
    takes_part = [
      inside if part == MEAN else inside & (states == values[None])
      for part, values in zip(parts, pooled, strict=True)
    ]
    return [jnp.where(taken, jnp.ones_like(states), 0) for taken in takes_part]

  def count(first: Any, inside: jax.Array, counts: Any) -> Any:
    return tuple(
      total + jnp.sum(share, axis=0)
      for total, share in zip(counts, shares(first, inside), strict=True)
    )

  zeros = (jnp.zeros(width, jnp.float32),) * len(parts)
  counts = over_bytes(begin, end, count, zeros)
  per_byte = [g / jnp.maximum(n, 1) for g, n in zip(gradients, counts, strict=True)]

  def write(first: Any, exists: jax.Array, carry: Any) -> Any:
    inside = first + jnp.arange(patch_intervals.BLOCK) < end
    terms = [s * g[None] for s, g in zip(shares(first, inside), per_byte, strict=True)]
    store(to_state_ref.at[*block(first)], functools.reduce(jnp.add, terms), exists)
    return carry

  # Bytes past the last patch are in none; its program gives them zeros.
  stop = jnp.where(patch == start_ref.shape[1] - 2, seq_len, end)
  over_bytes(begin, stop, write, begin)
