"""Patches from what is kept of their bytes, read out of a row's buffers.

As in `ops.patch_attention`, but each patch fetches its own bytes, a few at a time: the
cost follows the longest patch at hand, and patches of any length are exact.
"""

import jax
import jax.numpy as jnp

from blt_jax.decode import layers
from blt_jax.decode.weights import EncoderWeights
from blt_jax.models.config import BLTConfig
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
  shape = (*starts.shape, c.vectors_per_patch, c.encoder.dim)
  patches = jnp.zeros(shape, states[0].dtype)
  for i, (cross, read) in enumerate(zip(weights.cross, byte_keys, strict=True)):
    if i < len(states) and weights.patch_projection is not None:
      pooled = decode_layers.pool_bytes(states[i], starts, ends, c.pooling)
      patches = decode_layers.linear(pooled, weights.patch_projection).reshape(shape)
    query = layers.cross_queries(cross, c.encoder_cross, c.encoder.norm_epsilon, patches)
    mixed = decode_layers.attend_bytes(query, read, context_starts, ends)
    patches = layers.cross_output(cross, patches, mixed)
  return patches.reshape(*starts.shape, -1)
