"""Blocks and cross-attentions over a few new positions, the rest being in caches.

The arithmetic is that of `models.layers` and `models.local`, on `weights`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from blt_jax.models.config import CrossAttentionConfig, TransformerConfig
from blt_jax.ops import norm
from blt_jax.ops.ring_attention import masked_attention, ring_attention


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
    return self.position[:, None] + np.arange(self.first.shape[1])


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
  size = capacity
  if config.window is not None:
    size = min(capacity, config.window + chunk - 1)
  shape = (batch_size, size, config.num_kv_heads, config.head_dim)
  return [
    Ring(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(config.num_layers)
  ]


def run_stack(
  weights: list[Any],
  config: TransformerConfig,
  x: jax.Array,
  rings: list[Ring],
  span: Span,
  rope_positions: jax.Array | None = None,
) -> tuple[jax.Array, list[Ring]]:
  """Runs all blocks over new positions [B, C, D]."""
  angles = rope_angles(config, span.positions if rope_positions is None else rope_positions)
  new_rings = []
  for layer, ring in zip(weights, rings, strict=True):
    x, ring = run_block(layer, config, x, ring, span, angles)
    new_rings.append(ring)
  return x, new_rings


def run_block(
  weights: Any,
  config: TransformerConfig,
  x: jax.Array,
  ring: Ring,
  span: Span,
  angles: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, Ring]:
  """Adds attention(norm(x)), then mlp(norm(x)), to new positions [B, C, D]."""
  c = config
  h = norm.rms_norm(x, weights["attention_norm"], c.norm_epsilon)
  heads = split_heads(linear(h, weights["query_key_value"]), c.head_dim)
  rotated = _rotate(heads[:, :, : c.num_heads + c.num_kv_heads], angles)
  query, key = rotated[:, :, : c.num_heads], rotated[:, :, c.num_heads :]
  value = heads[:, :, c.num_heads + c.num_kv_heads :]
  mixed, keys, values = ring_attention(
    query, key, value, ring.keys, ring.values,
    span.position, span.count, span.first, c.window,
  )  # fmt: skip
  x = x + linear(mixed.reshape(*x.shape[:2], -1), weights["output"])
  h = norm.rms_norm(x, weights["mlp_norm"], c.norm_epsilon)
  gate, up = jnp.split(linear(h, weights["gate_up"]), 2, axis=-1)
  return x + linear(jax.nn.silu(gate) * up, weights["down"]), Ring(keys, values)


def rope_angles(config: TransformerConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Cosines and sines [B, C, 1, H / 2] for heads in halves; see `weights`."""
  exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim
  frequencies = (1.0 / config.rope_theta**exponents).astype(np.float32)
  angles = positions[..., None, None].astype(jnp.float32) * frequencies
  return jnp.cos(angles), jnp.sin(angles)


def _rotate(x, angles):
  cos, sin = angles
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  rotated = [first * cos - second * sin, second * cos + first * sin]
  return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def linear(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Multiplies x [..., in] by kernel [in, out], in the dtype of x."""
  flat = jnp.dot(x.reshape(-1, x.shape[-1]), kernel.astype(x.dtype))
  return flat.reshape(*x.shape[:-1], -1)


def split_heads(x: jax.Array, head_dim: int) -> jax.Array:
  """[..., heads * H] -> [..., heads, H]."""
  return x.reshape(*x.shape[:-1], -1, head_dim)


def cross_attention(
  weights: Any,
  config: CrossAttentionConfig,
  epsilon: float,
  x: jax.Array,
  context: jax.Array,
  visible: jax.Array,
) -> jax.Array:
  """Each group of queries reads its own context: 2 x + attention, as both references do.

  Args:
    weights: of the cross-attention.
    config: its heads.
    epsilon: of its norms.
    x: [B, C, Q, D] queries.
    context: [B, C, M, D] what each group may read.
    visible: bool [B, C, M], what of it is there.

  Returns:
    [B, C, Q, D].
  """
  query = cross_queries(weights, config, epsilon, x)
  key, value = cross_keys(weights, config, epsilon, context)
  mixed = masked_attention(query, key, value, visible[:, :, None])
  return cross_output(weights, x, mixed)


def cross_queries(weights, config, epsilon, x):
  """Queries [..., Q, G, R, H] of x [..., Q, D]."""
  h = linear(norm.rms_norm(x, weights["query_norm"], epsilon), weights["query"])
  return h.reshape(
    *x.shape[:-1], config.num_kv_heads, config.num_heads // config.num_kv_heads, -1
  )


def cross_keys(weights, config, epsilon, context):
  """Keys and values, each [..., M, G, H], of context [..., M, D]."""
  h = norm.rms_norm(context, weights["context_norm"], epsilon)
  h = linear(h, weights["key_value"]).reshape(*h.shape[:-1], 2, config.num_kv_heads, -1)
  return h[..., 0, :, :], h[..., 1, :, :]


def cross_output(weights, x, mixed):
  """2 x + the output matrix times mixed heads [..., Q, G, R, H]."""
  return 2 * x + linear(mixed.reshape(*x.shape[:-1], -1), weights["output"])
