"""Blocks and cross-attentions over a few new positions, the rest being in caches.

The arithmetic is that of `models.layers` and `models.local`, on `weights`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from blt_jax.decode.weights import BlockWeights, CrossWeights
from blt_jax.models.config import CrossAttentionConfig, TransformerConfig
from blt_jax.ops import decode_layers, rope
from blt_jax.ops.decode_layers import linear_add, norm_linear


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Ring:
  """Keys and values of a layer's newest positions; position p is in slot p modulo R."""

  keys: jax.Array  # [B, R, G, H]
  values: jax.Array  # [B, R, G, H]


@dataclasses.dataclass(frozen=True)
class Span:
  """Which positions are new.

  Attributes:
    position: int [B], positions that a row has seen; the new ones follow.
    count: int [B], how many of the C new ones are real.
    first: int [B, C], the oldest position that each may see.
  """

  position: jax.Array
  count: jax.Array
  first: jax.Array

  @property
  def positions(self) -> jax.Array:
    """The new positions, int [B, C]."""
    return self.position[:, None] + np.arange(self.first.shape[1])[None]


def init_rings(
  config: TransformerConfig, batch_size: int, capacity: int, chunk: int, dtype: str
) -> list[Ring]:
  """Empty rings for all layers of a stack.

  Args:
    config: the stack.
    batch_size: B.
    capacity: the most positions that a row will have.
    chunk: the most new positions that may be taken back.
    dtype: of keys and values.
  """
  size = capacity if config.window is None else config.window + chunk - 1
  size = decode_layers.ring_size(size)
  shape = (batch_size, size, config.num_kv_heads, config.head_dim)
  return [
    Ring(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(config.num_layers)
  ]


def run_stack(
  weights: list[BlockWeights],
  config: TransformerConfig,
  x: jax.Array,
  rings: list[Ring],
  span: Span,
  rope_positions: jax.Array | None = None,
) -> tuple[jax.Array, list[Ring]]:
  """Runs all blocks over new positions [B, C, D]."""
  positions = span.positions if rope_positions is None else rope_positions
  angles = jax.tree.map(decode_layers.retain, rope_angles(config, positions))
  new_rings = []
  for layer, ring in zip(weights, rings, strict=True):
    x, ring = run_block(layer, config, x, ring, span, angles)
    new_rings.append(ring)
  return x, new_rings


def run_block(
  weights: BlockWeights,
  config: TransformerConfig,
  x: jax.Array,
  ring: Ring,
  span: Span,
  angles: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, Ring]:
  """Adds attention(norm(x)), then mlp(norm(x)), to new positions [B, C, D]."""
  c, w, epsilon = config, weights, config.norm_epsilon
  projected = norm_linear(x, w.attention_norm, epsilon, w.query_key_value)
  heads = projected.reshape(*x.shape[:2], -1, c.head_dim)  # [B, C, N + 2 G, H]
  x, keys, values = decode_layers.attend_add(
    heads, c.num_heads, angles, (ring.keys, ring.values), span.position, span.count,
    span.first, w.output, x, c.window,
  )  # fmt: skip
  hidden = norm_linear(x, w.mlp_norm, epsilon, w.gate_up, is_gated=True)
  return linear_add(x, hidden, w.down), Ring(keys, values)


def rope_angles(config: TransformerConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Cosines and sines [B, C, 1, H / 2] of a stack; see `rope.rope_angles`."""
  c = config
  return rope.rope_angles(positions, c.head_dim, c.rope_theta, c.rope_scaling)


def read_patches(
  weights: CrossWeights,
  config: CrossAttentionConfig,
  epsilon: float,
  x: jax.Array,
  patches: jax.Array,
  ids: jax.Array,
  first: jax.Array | None = None,
) -> jax.Array:
  """Each byte reads the vectors of its patches: 2 x + attention, as both references do.

  Args:
    weights: of the cross-attention.
    config: its heads and window.
    epsilon: of its norms.
    x: [B, C, D] byte states.
    patches: [B, M, S, 2, G, H] keys and values of the vectors of each patch.
    ids: int [B, C], the newest patch that each byte reads, 0 or more.
    first: int [B, C], the oldest that its window may reach; None for 0.

  Returns:
    [B, C, D].
  """
  query = cross_queries(weights, config, epsilon, x[:, :, None])
  window = config.window or 1
  return decode_layers.read_patches(query, patches, ids, weights.output, x, window, first)


def cross_queries(
  weights: CrossWeights, config: CrossAttentionConfig, epsilon: float, x: jax.Array
) -> jax.Array:
  """Queries [..., Q, G, R, H] of x [..., Q, D]."""
  h = norm_linear(x, weights.query_norm, epsilon, weights.query)
  return h.reshape(
    *x.shape[:-1], config.num_kv_heads, config.num_heads // config.num_kv_heads, -1
  )


def cross_keys(
  weights: CrossWeights, config: CrossAttentionConfig, epsilon: float, context: jax.Array
) -> jax.Array:
  """Keys and values [..., M, 2, G, H] of context [..., M, D]."""
  h = norm_linear(context, weights.context_norm, epsilon, weights.key_value)
  return h.reshape(*h.shape[:-1], 2, config.num_kv_heads, -1)


def cross_output(weights: CrossWeights, x: jax.Array, mixed: jax.Array) -> jax.Array:
  """2 x [..., D] + the output matrix times mixed heads [..., G, R, H]."""
  return linear_add(x, mixed.reshape(*x.shape[:-1], -1), weights.output, factor=2)
