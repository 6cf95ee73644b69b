"""Patches from what the encoder noted of their bytes, read out of a row's buffers.

As in `ops.patch_attention`, but each patch fetches its own bytes, a few at a time: the
cost follows the longest patch at hand, and patches of any length are exact.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from blt_jax.decode import layers
from blt_jax.models.config import BLTConfig
from blt_jax.ops import gpu_byte_reading

_BLOCK = 16  # bytes of a patch read at once


def encode_patches(
  weights: Any,
  config: BLTConfig,
  states: list[jax.Array],
  keys: list[jax.Array],
  starts: jax.Array,
  ends: jax.Array,
  context_starts: jax.Array,
) -> jax.Array:
  """Patches [B, P, patch_dim] from their bytes.

  Args:
    weights: of the encoder.
    config: the model.
    states: [B, T, D] of bytes, under each cross-attention that pools.
    keys: [B, T, 2, G, H] keys and values of bytes under each cross-attention.
    starts: int [B, P], the first byte of each patch.
    ends: int [B, P], the byte after its last.
    context_starts: int [B, P], the first byte that its cross-attention reads.
  """
  c = config
  if c.encoder_cross is None:
    return pool(states[0], starts, ends, c.pooling)
  shape = (*starts.shape, c.vectors_per_patch, c.encoder.dim)
  patches = jnp.zeros(shape, states[0].dtype)
  for i, (cross, buffer) in enumerate(zip(weights["cross"], keys, strict=True)):
    if i < len(states):
      pooled = pool(states[i], starts, ends, c.pooling)
      patches = layers.linear(pooled, weights["patch_projection"]).reshape(shape)
    query = layers.cross_queries(cross, c.encoder_cross, c.encoder.norm_epsilon, patches)
    mixed = _read_bytes(query, buffer, context_starts, ends)
    patches = layers.cross_output(cross, patches, mixed)
  return patches.reshape(*starts.shape, -1)


def pool(buffer: jax.Array, starts: jax.Array, ends: jax.Array, modes: str) -> jax.Array:
  """Pools the bytes of each patch; see `ops.patch_attention.pool`."""
  names = tuple(mode for mode in ("avg", "mean", "min", "max") if mode in modes.split("_"))
  kernel = functools.partial(gpu_byte_reading.pool, modes=names)
  fits = gpu_byte_reading.fits_pool(buffer)
  plain = functools.partial(_pool, modes=names)
  return layers.either(kernel if fits else None, plain, buffer, starts, ends)


def _pool(buffer, starts, ends, modes):
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
  total, least, largest = jax.lax.fori_loop(0, _num_blocks(starts, ends), add, carry)
  count = (ends - starts)[..., None]
  mean = total / jnp.maximum(count, 1)
  pooled = {"avg": mean, "mean": mean, "min": least, "max": largest}
  joined = jnp.concatenate([pooled[mode] for mode in modes], axis=-1)
  return jnp.where(count > 0, joined, 0).astype(buffer.dtype)


def _read_bytes(query, buffer, starts, ends):
  """Queries [B, P, K, G, R, H] read bytes of the buffer: mixed heads of the same shape."""
  kernel = gpu_byte_reading.read_bytes if gpu_byte_reading.fits_read(query) else None
  return layers.either(kernel, _attend, query, buffer, starts, ends)


def _attend(query, buffer, starts, ends):
  dtype, query = query.dtype, query.astype(jnp.float32) * query.shape[-1] ** -0.5

  def add(block, carry):
    largest, total, mixed = carry  # [B, P, G, R, K], the last one with [.., H]
    read, inside = _read(buffer, starts, ends, block)
    key, value = read[..., 0, :, :], read[..., 1, :, :]
    scores = jnp.einsum("bpqgrh,bpkgh->bpgrqk", query, key.astype(jnp.float32))
    scores = jnp.where(inside[:, :, None, None, None], scores, -jnp.inf)
    highest = jnp.maximum(largest, scores.max(axis=-1))
    floor = jnp.where(jnp.isfinite(highest), highest, 0)
    scores, scale = jnp.exp(scores - floor[..., None]), jnp.exp(largest - floor)
    added = jnp.einsum("bpgrqk,bpkgh->bpgrqh", scores, value.astype(jnp.float32))
    return highest, total * scale + scores.sum(-1), mixed * scale[..., None] + added

  shape = tuple(query.shape[i] for i in (0, 1, 3, 4, 2))
  carry = (
    jnp.full(shape, -jnp.inf),
    jnp.zeros(shape),
    jnp.zeros((*shape, query.shape[-1])),
  )
  _, total, mixed = jax.lax.fori_loop(0, _num_blocks(starts, ends), add, carry)
  mixed = mixed / jnp.where(total > 0, total, 1)[..., None]
  return jnp.moveaxis(mixed, 4, 2).astype(dtype)


def _num_blocks(starts, ends):
  return -(-jnp.max(ends - starts) // _BLOCK)


def _read(buffer, starts, ends, block):
  """The next bytes of each patch: [B, P, L, ...], whether they are its own."""
  positions = starts[..., None] + block * _BLOCK + np.arange(_BLOCK)
  return layers.take(buffer, positions), positions < ends[..., None]
