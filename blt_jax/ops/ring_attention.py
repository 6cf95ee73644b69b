"""Causal attention of a few new positions to a cache of those before them."""

import jax
import jax.numpy as jnp
import numpy as np

from blt_jax.ops.masked_attention import blockwise_attention, masked_attention

_BLOCK = 256  # slots of a long ring that are read at once


def write_ring(
  ring: jax.Array, values: jax.Array, position: jax.Array, count: jax.Array
) -> jax.Array:
  """Writes new positions into a ring, where position p lies in slot p modulo R.

  Args:
    ring: [B, R, ...].
    values: [B, C, ...] of positions `position` and after.
    position: int [B], the first new position of each row.
    count: int [B], how many of the C are to be written.

  Returns:
    [B, R, ...] with the newest R positions of each row.
  """
  size, length = ring.shape[1], values.shape[1]
  step = np.arange(length)[None]
  written = (step < count[:, None]) & (step >= count[:, None] - size)
  slots = jnp.where(written, (position[:, None] + step) % size, size)

  def write(ring, slots, values):
    return ring.at[slots].set(values.astype(ring.dtype), mode="drop", unique_indices=False)

  return jax.vmap(write)(ring, slots, values)


def ring_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  key_ring: jax.Array,
  value_ring: jax.Array,
  position: jax.Array,
  count: jax.Array,
  first: jax.Array,
  window: int | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Appends new keys and values to their rings and attends from the new positions.

  A row may later go back to any position among the last C and go on from there, if
  R >= window + C - 1: what was written after it is never looked at.

  Args:
    query: [B, C, N, H].
    key: [B, C, G, H]; each of the G heads serves N / G adjacent query heads.
    value: [B, C, G, H].
    key_ring: [B, R, G, H]; R must be at least `window - 1`, or hold the whole row.
    value_ring: [B, R, G, H].
    position: int [B], positions that a row has seen.
    count: int [B], how many of the C are real; outputs of others mean nothing.
    first: int [B, C], the oldest position that each query may see.
    window: how many positions are visible, the query's own included; None for all,
      and then the ring holds the whole row.

  Returns:
    [B, C, N, H] in the dtype of `query`, softmax in float32; and the rings.
  """
  batch, length, heads, head_dim = query.shape
  size = key_ring.shape[1]
  at = position[:, None] + np.arange(length)[None]  # [B, C]
  if window is not None:
    first = jnp.maximum(first, at - window + 1)

  # What the queries may see, [B, R], and at which positions.
  keys = write_ring(key_ring, key, position, count)
  values = write_ring(value_ring, value, position, count)
  if window is None or size >= window + length - 1:
    seen_keys, seen_values = keys, values
    seen_at = _positions_in_ring(position + count, size)
  else:  # the ring would lose positions that the first queries see
    seen_keys = jnp.concatenate([key_ring, key.astype(key_ring.dtype)], axis=1)
    seen_values = jnp.concatenate([value_ring, value.astype(value_ring.dtype)], axis=1)
    seen_at = jnp.concatenate([_positions_in_ring(position, size), at], axis=1)
  seen_at = seen_at[:, None]  # [B, 1, R]
  visible = (seen_at >= first[..., None]) & (seen_at <= at[..., None])

  grouped = query.reshape(batch, length, key.shape[2], -1, head_dim)
  if window is None and size > _BLOCK:
    mixed = _attend_filled(grouped, keys, values, visible, position + count)
  else:
    mixed = masked_attention(grouped, seen_keys, seen_values, visible)
  return mixed.reshape(query.shape), keys, values


def _attend_filled(
  query: jax.Array, keys: jax.Array, values: jax.Array, visible: jax.Array, end: jax.Array
) -> jax.Array:
  """Attention to the slots below the highest `end`; the rest is not read."""
  size = keys.shape[1]

  def read(block):
    first = block * _BLOCK
    begin = jnp.minimum(first, size - _BLOCK)

    def cut(x, axis):
      return jax.lax.dynamic_slice_in_dim(x, begin, _BLOCK, axis)

    is_new = (begin + np.arange(_BLOCK) >= first)[None, None]
    return cut(keys, 1), cut(values, 1), cut(visible, 2) & is_new

  return blockwise_attention(query, read, -(-jnp.max(end) // _BLOCK))


def _positions_in_ring(end: jax.Array, size: int) -> jax.Array:
  """The newest position below `end` [B] that each slot may hold: [B, R], some < 0."""
  newest = end[:, None] - 1
  return newest - (newest - np.arange(size)[None]) % size
