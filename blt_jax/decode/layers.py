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
from blt_jax.ops.masked_attention import masked_attention
from blt_jax.ops.ring_attention import ring_attention
from blt_jax.ops.triton import call as gpu_call
from blt_jax.ops.triton import matvec as gpu_matvec
from blt_jax.ops.triton import norm as gpu_norm
from blt_jax.ops.triton import patch_attention as gpu_patch_attention
from blt_jax.ops.triton import ring_attention as gpu_ring_attention


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
  size = capacity if config.window is None else config.window + chunk - 1
  block = gpu_ring_attention.BLOCK
  if size > block:
    size = -(-size // block) * block
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
  angles = jax.tree.map(gpu_call.keep, angles)
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
  c, epsilon = config, config.norm_epsilon
  projected = norm_linear(x, weights["attention_norm"], epsilon, weights["query_key_value"])
  heads = projected.reshape(*x.shape[:2], -1, c.head_dim)
  x, ring = _attend_add(c, x, heads, weights["output"], angles, ring, span)
  hidden = norm_linear(x, weights["mlp_norm"], epsilon, weights["gate_up"], is_gated=True)
  return linear_add(x, hidden, weights["down"]), ring


def _attend_add(config, x, heads, matrix, angles, ring, span):
  """Adds attention of queries, keys and values [B, C, N + 2 G, H] to x [B, C, D]."""
  number, window = config.num_heads, config.window
  here = ring.keys, ring.values, span.position, span.count, span.first
  if _on_gpu(gpu_ring_attention.fits_attend(heads, number, ring.keys, window)):
    x, keys, values = gpu_ring_attention.attend_add(
      heads, angles, *here, matrix, x, window=window
    )
    return x, Ring(keys, values)
  query, key, value = jnp.split(heads, [number, number + config.num_kv_heads], axis=2)
  query, key = rotate(query, angles), rotate(key, angles)
  mixed, keys, values = ring_attention(query, key, value, *here, window)
  return x + linear(mixed.reshape(*x.shape[:2], -1), matrix), Ring(keys, values)


def _on_gpu(fits: bool) -> bool:
  """Whether to use a kernel, given that it takes the arguments."""
  return fits and gpu_call.is_available()


def rope_angles(config: TransformerConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Cosines and sines [B, C, 1, H / 2] for heads in halves; see `weights`."""
  exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim
  frequencies = (1.0 / config.rope_theta**exponents).astype(np.float32)
  angles = positions[..., None, None].astype(jnp.float32) * frequencies
  return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Rotates heads [B, C, N, H] that are ordered in halves; see `weights`."""
  cos, sin = angles
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  rotated = [first * cos - second * sin, second * cos + first * sin]
  return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def linear(x: jax.Array, matrix: jax.Array) -> jax.Array:
  """Multiplies x [..., in] by a matrix [out, in]; the result has the dtype of x."""
  flat = x.reshape(-1, x.shape[-1])
  if _on_gpu(gpu_matvec.fits_matvec(flat, len(matrix))):
    flat = gpu_matvec.matvec(flat, matrix)
  else:
    flat = jnp.dot(flat, matrix.astype(x.dtype).T)
  return flat.reshape(*x.shape[:-1], -1)


def norm_linear(
  x: jax.Array, scale: jax.Array, epsilon: float, matrix: jax.Array, is_gated: bool = False
) -> jax.Array:
  """Normalises x [..., in] and multiplies it by a matrix [out, in].

  With `is_gated`, silu of the first half of the result times the second half.
  """
  flat, size = x.reshape(-1, x.shape[-1]), len(matrix) // (2 if is_gated else 1)
  if _on_gpu(gpu_matvec.fits_matvec(flat, size)):
    y = gpu_matvec.matvec(flat, matrix, scale=scale, epsilon=epsilon, is_gated=is_gated)
    return y.reshape(*x.shape[:-1], -1)
  if _on_gpu(gpu_norm.fits_norm(flat)):
    normed = gpu_norm.rms_norm(flat, scale, epsilon).reshape(x.shape)
  else:
    normed = norm.rms_norm(x, scale, epsilon)
  y = gpu_call.keep(linear(normed, matrix))
  if not is_gated:
    return y
  gate, up = jnp.split(y, 2, axis=-1)
  return gpu_call.keep(jax.nn.silu(gate) * up)


def linear_add(
  residual: jax.Array, x: jax.Array, matrix: jax.Array, factor: int = 1
) -> jax.Array:
  """Adds `factor` times a residual [..., out] to x [..., in] times a matrix [out, in]."""
  flat = x.reshape(-1, x.shape[-1])
  if _on_gpu(gpu_matvec.fits_matvec(flat, len(matrix))):
    added = residual.reshape(len(flat), -1)
    y = gpu_matvec.matvec(flat, matrix, residual=added, factor=factor)
    return y.reshape(residual.shape)
  return gpu_call.keep(factor * residual + linear(x, matrix))


def read_patches(
  weights: Any,
  config: CrossAttentionConfig,
  epsilon: float,
  x: jax.Array,
  patches: jax.Array,
  ids: jax.Array,
) -> jax.Array:
  """Each byte reads the vectors of its patches: 2 x + attention, as both references do.

  Args:
    weights: of the cross-attention.
    config: its heads and window.
    epsilon: of its norms.
    x: [B, C, D] byte states.
    patches: [B, M, S, 2, G, H] keys and values of the vectors of each patch.
    ids: int [B, C], the newest patch that each byte reads, 0 or more.

  Returns:
    [B, C, D].
  """
  query = cross_queries(weights, config, epsilon, x[:, :, None])
  window = config.window or 1
  if _on_gpu(gpu_patch_attention.fits_read(query, x.shape[-1])):
    return gpu_patch_attention.read_patches(
      query, patches, ids, weights["output"], x, window=window, factor=2
    )
  return cross_output(weights, x, _attend_patches(query, patches, ids, window))


def _attend_patches(query, patches, ids, window):
  """Mixed heads [B, C, 1, G, R, H] of queries of the same shape."""
  ids = ids[..., None] - np.arange(window)
  read = take(patches, jnp.maximum(ids, 0))  # [B, C, window, S, 2, G, H]
  visible = jnp.repeat(ids >= 0, read.shape[3], axis=-1)
  read = read.reshape(*ids.shape[:2], -1, *read.shape[4:])
  return masked_attention(query, read[:, :, :, 0], read[:, :, :, 1], visible[:, :, None])


def take(values: jax.Array, ids: jax.Array) -> jax.Array:
  """Looks up values [B, T, ...] at ids [B, ...], the nearest where out of range."""
  return jax.vmap(lambda rows, at: rows.at[at].get(mode="clip"))(values, ids)


def cross_queries(weights, config, epsilon, x):
  """Queries [..., Q, G, R, H] of x [..., Q, D]."""
  h = norm_linear(x, weights["query_norm"], epsilon, weights["query"])
  return h.reshape(
    *x.shape[:-1], config.num_kv_heads, config.num_heads // config.num_kv_heads, -1
  )


def cross_keys(weights, config, epsilon, context):
  """Keys and values [..., M, 2, G, H] of context [..., M, D]."""
  h = norm_linear(context, weights["context_norm"], epsilon, weights["key_value"])
  return h.reshape(*h.shape[:-1], 2, config.num_kv_heads, -1)


def cross_output(weights, x, mixed):
  """2 x [..., D] + the output matrix times mixed heads [..., G, R, H]."""
  return linear_add(x, mixed.reshape(*x.shape[:-1], -1), weights["output"], factor=2)
