"""Blocks and cross-attentions over a few new positions, the rest being in caches.

The arithmetic is that of `models.layers` and `models.local`, on `weights`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from blt_jax.models.config import CrossAttentionConfig, TransformerConfig
from blt_jax.ops import gpu_call, gpu_matvec, gpu_patch_attention, gpu_ring_attention, norm
from blt_jax.ops.masked_attention import masked_attention
from blt_jax.ops.ring_attention import ring_attention


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

  def plain(heads, angles, keys, values, position, count, first, matrix, x):
    rotated = rotate(heads[:, :, : number + config.num_kv_heads], angles)
    query, key = rotated[:, :, :number], rotated[:, :, number:]
    value = heads[:, :, number + config.num_kv_heads :]
    mixed, keys, values = ring_attention(
      query, key, value, keys, values, position, count, first, window
    )
    return x + linear(mixed.reshape(*x.shape[:2], -1), matrix), keys, values

  kernel = functools.partial(gpu_ring_attention.attend_add, window=window)
  fits = gpu_ring_attention.fits_attend(heads, number, ring.keys, window)
  x, keys, values = _either(
    kernel if fits else None, plain, heads, angles, ring.keys, ring.values, span.position,
    span.count, span.first, matrix, x,
  )  # fmt: skip
  return x, Ring(keys, values)


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
  flat = jnp.dot(x.reshape(-1, x.shape[-1]), matrix.astype(x.dtype).T)
  return flat.reshape(*x.shape[:-1], -1)


def norm_linear(
  x: jax.Array, scale: jax.Array, epsilon: float, matrix: jax.Array, is_gated: bool = False
) -> jax.Array:
  """Normalises x [..., in] and multiplies it by a matrix [out, in].

  With `is_gated`, silu of the first half of the result times the second half.
  """

  def plain(x, scale, matrix):
    y = linear(norm.rms_norm(x, scale, epsilon), matrix)
    if not is_gated:
      return y
    gate, up = jnp.split(y, 2, axis=-1)
    return jax.nn.silu(gate) * up

  kernel = functools.partial(gpu_matvec.matvec, epsilon=epsilon, is_gated=is_gated)
  size = len(matrix) // (2 if is_gated else 1)
  return _on_vectors(
    lambda x, scale, m: kernel(x, m, scale=scale), plain, x, scale, matrix, size
  )


def linear_add(
  residual: jax.Array, x: jax.Array, matrix: jax.Array, factor: int = 1
) -> jax.Array:
  """Adds `factor` times a residual [..., out] to x [..., in] times a matrix [out, in]."""

  def plain(x, residual, matrix):
    return factor * residual + linear(x, matrix)

  def kernel(x, residual, matrix):
    residual = residual.reshape(len(x), -1)
    return gpu_matvec.matvec(x, matrix, residual=residual, factor=factor)

  return _on_vectors(kernel, plain, x, residual, matrix, len(matrix))


def _on_vectors(kernel, plain, x, other, matrix, size):
  """Runs `kernel` on x as [n, in] where it can, else `plain` on x."""
  flat = x.reshape(-1, x.shape[-1])

  def on_flat(x, other, matrix):
    return kernel(x.reshape(flat.shape), other, matrix).reshape(*x.shape[:-1], -1)

  fits = gpu_matvec.fits_matvec(flat, size)
  return _either(on_flat if fits else None, plain, x, other, matrix)


def _either(kernel, plain, *arguments):
  """The GPU kernel where it can be used, the plain function elsewhere."""
  return (kernel if kernel and gpu_call.is_available() else plain)(*arguments)


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

  def plain(query, patches, ids, matrix, x):
    mixed = _attend_patches(query, patches, ids, window)
    return 2 * x + linear(mixed.reshape(*x.shape[:2], -1), matrix)

  kernel = functools.partial(gpu_patch_attention.read_patches, window=window, factor=2)
  fits = gpu_patch_attention.fits_read(query, x.shape[-1])
  return _either(kernel if fits else None, plain, query, patches, ids, weights["output"], x)


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
