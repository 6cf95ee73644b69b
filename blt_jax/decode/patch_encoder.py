"""Patches from what is kept of their bytes, read out of a row's buffers.

As in `ops.patch_attention`, but each patch fetches its own bytes, a few at a time: the
cost follows the longest patch at hand, and patches of any length are exact.
"""

import jax
import jax.numpy as jnp

from blt_jax.decode import layers
from blt_jax.decode.weights import CrossWeights, EncoderWeights
from blt_jax.models.config import BLTConfig, CrossAttentionConfig
from blt_jax.ops import decode_layers


def encode_patches(
  weights: EncoderWeights,
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
    return decode_layers.pool_bytes(states[0], starts, ends, c.pooling)
  epsilon, shape = c.encoder.norm_epsilon, (*starts.shape, c.vectors_per_patch, c.encoder.dim)
  patches = jnp.zeros(shape, states[0].dtype)
  for i, (cross, read) in enumerate(zip(weights.cross, byte_keys, strict=True)):
    if i < len(states) and weights.patch_projection is not None:
      pooled = decode_layers.pool_bytes(states[i], starts, ends, c.pooling)
      patches = decode_layers.linear(pooled, weights.patch_projection).reshape(shape)
    patches = read_own(cross, c.encoder_cross, epsilon, patches, read, context_starts, ends)
  return patches.reshape(*starts.shape, -1)


def read_own(
  weights: CrossWeights,
  config: CrossAttentionConfig,
  epsilon: float,
  patches: jax.Array,
  keys: jax.Array,
  starts: jax.Array,
  ends: jax.Array,
) -> jax.Array:
  """Patches [B, P, K, D] that have read what they consist of.

  Args:
    weights: of the cross-attention.
    config: its heads.
    epsilon: of its norms.
    patches: [B, P, K, D].
    keys: [B, T, 2, G, H] keys and values of bytes, or of vectors of finer patches.
    starts: int [B, P], the first that each patch reads.
    ends: int [B, P], that after the last.
  """
  query = layers.cross_queries(weights, config, epsilon, patches)
  mixed = decode_layers.attend_bytes(query, keys, starts, ends)
  return layers.cross_output(weights, patches, mixed)
