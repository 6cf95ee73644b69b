"""Patches from what is kept of their bytes, read out of a row's buffers.

As in `ops.patch_attention`, but each patch fetches its own bytes, a few at a time: the
cost follows the longest patch at hand, and patches of any length are exact.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from blt_jax.decode import layers
from blt_jax.models.config import BLTConfig
from blt_jax.ops.masked_attention import blockwise_attention
from blt_jax.ops.triton import call as gpu_call
from blt_jax.ops.triton import patch_encoder as gpu_patch_encoder

_BLOCK = 16  # bytes of a patch read at once


def encode_patches(
  weights: Any,
  config: BLTConfig,
  states: list[jax.Array],
  byte_keys: list[jax.Array],
  starts: jax.Array,
  ends: jax.Array,
  context_starts: jax.Array,
) -> jax.Array:
  """Patches [B, P, patch_dim] from byte states.

  Args:
    weights: of the encoder.
    config: the model.
    states: [B, T, D] of bytes, that patches begin with: under each cross-attention with
      `repool`, else under the first one, or the last where there is none.
    byte_keys: [B, T, 2, G, H] keys and values of bytes, for each cross-attention.
    starts: int [B, P], the first byte of each patch.
    ends: int [B, P], the byte after its last.
    context_starts: int [B, P], the first byte that its cross-attention reads.
  """
  c = config
  if c.encoder_cross is None:
    return pool(states[0], starts, ends, c.pooling)
  shape = (*starts.shape, c.vectors_per_patch, c.encoder.dim)
  patches = jnp.zeros(shape, states[0].dtype)
  for i, (cross, read) in enumerate(zip(weights["cross"], byte_keys, strict=True)):
    if i < len(states):
      pooled = pool(states[i], starts, ends, c.pooling)
      patches = layers.linear(pooled, weights["patch_projection"]).reshape(shape)
    patches = _attend_add(cross, c, patches, read, context_starts, ends)
  return patches.reshape(*starts.shape, -1)


def pool(buffer: jax.Array, starts: jax.Array, ends: jax.Array, modes: str) -> jax.Array:
  """Pools the bytes of each patch; see `ops.patch_attention.pool`."""
  if gpu_patch_encoder.fits_pool(buffer) and gpu_call.is_available():
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


def _attend_add(weights, config, patches, read, starts, ends):
  """The vectors of patches [B, P, K, D], twice, and what they read of their bytes."""
  query = layers.cross_queries(
    weights, config.encoder_cross, config.encoder.norm_epsilon, patches
  )
  return layers.cross_output(weights, patches, attend(query, read, starts, ends))


def attend(
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
  if gpu_patch_encoder.fits_attend(query, keys_and_values) and gpu_call.is_available():
    return gpu_patch_encoder.attend(query, keys_and_values, starts, ends)

  def read(block):
    states, inside = _read(keys_and_values, starts, ends, block)
    return states[..., 0, :, :], states[..., 1, :, :], inside[:, :, None]

  return blockwise_attention(query, read, _num_blocks(starts, ends))


def _num_blocks(starts, ends):
  return -(-jnp.max(ends - starts) // _BLOCK)


def _read(buffer, starts, ends, block):
  """The next bytes of each patch: [B, P, L, ...] of [B, T, ...], whether they are its own."""
  positions = starts[..., None] + block * _BLOCK + np.arange(_BLOCK)
  return layers.take(buffer, positions), positions < ends[..., None]
