"""What a layer does but for attention, in three kernels for NVIDIA Hopper.

Each is a product with two matrices: a gate and its value, the two halves of a rotation, or
two parts of the same row. Norms are taken apart: their gains belong to the weights, and
`1 / rms` is a factor of each row of products. For it, `added` gives the sums of squares of
what it writes.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from blt_jax.ops.hopper.product import COLUMNS, Companion, product, write


def gated(
  x: jax.Array,
  scale: jax.Array,
  gate: jax.Array,
  up: jax.Array,
  layer: jax.Array,
) -> jax.Array:
  """silu(x @ gate) * (x @ up) of scaled rows.

  Args:
    x: bfloat16 [M, K]; M is a multiple of `hopper_product.ROWS`, K of its `DEPTH`.
    scale: float32 [M], of the rows.
    gate: bfloat16 [L, K, F]; F is a multiple of `COLUMNS`.
    up: likewise.
    layer: int32 [1], which of the L.

  Returns:
    bfloat16 [M, F].
  """
  width = COLUMNS // 2

  def finish(tile, a, b):
    scale = tile.scale(width)
    for i in range(2):
      part = slice(i * width, (i + 1) * width)
      half = a[:, part] * (scale * 0.5)
      hidden = (half + half * jnp.tanh(half)) * (b[:, part] * scale)
      there = tile.outputs[0].at[tile.rows, pl.ds(tile.column + i * width, width)]
      write(tile.staging.at[i], [hidden], [there])

  out = jax.ShapeDtypeStruct((x.shape[0], gate.shape[2]), x.dtype)
  return product("gated", x, scale, (gate, up), layer, None, [out], (1, width), finish)[0]


def rotated(
  x: jax.Array,
  scale: jax.Array,
  even: jax.Array,
  odd: jax.Array,
  layer: jax.Array,
  angles: jax.Array,
  num_rotated: int,
) -> jax.Array:
  """Heads of scaled rows, the first `num_rotated` of them rotated.

  Args:
    x: bfloat16 [M, K].
    scale: float32 [M], of the rows.
    even: bfloat16 [L, K, heads * H / 2], which gives the first of each pair of a head.
    odd: likewise, the second ones.
    layer: int32 [1], which of the L.
    angles: see `angle_parts`.
    num_rotated: heads, a multiple of `COLUMNS` / (H / 2).

  Returns:
    bfloat16 [M, heads, H], in each head all first ones before all second ones.
  """
  half = angles.shape[1] // 4
  heads = even.shape[2] // half

  def finish(tile, a, b):
    scale = tile.scale(half)
    parts = tile.companion(0).astype(jnp.float32)
    parts = [parts[:, i * half : (i + 1) * half] for i in range(4)]
    is_rotated = tile.column < num_rotated * half
    cos = jnp.where(is_rotated, parts[0] + parts[1], 1.0) * scale
    sin = jnp.where(is_rotated, parts[2] + parts[3], 0.0) * scale
    for i in range(COLUMNS // half):
      first, second = (m[:, i * half : (i + 1) * half] for m in (a, b))
      there = tile.outputs[0].at[tile.rows, lax.div(tile.column, half) + i]
      places = [there.at[:, pl.ds(k * half, half)] for k in range(2)]
      pieces = first * cos - second * sin, first * sin + second * cos
      write(tile.staging.at[i % 2], pieces, places)

  out = jax.ShapeDtypeStruct((x.shape[0], heads, 2 * half), x.dtype)
  companion = Companion(angles, 1, lambda column, part: 0)
  pair, staging = (even, odd), (2, half)
  return product("rotated", x, scale, pair, layer, companion, [out], staging, finish)[0]


def angle_parts(cos: jax.Array, sin: jax.Array) -> jax.Array:
  """Cosines and sines float32 [M, H / 2] as sums of two bfloat16 each: [M, 2 H]."""
  parts = []
  for x in (cos, sin):
    high = x.astype(jnp.bfloat16)
    parts += [high, (x - high.astype(jnp.float32)).astype(jnp.bfloat16)]
  return jnp.concatenate(parts, axis=1)


def added(
  residual: jax.Array,
  x: jax.Array,
  left: jax.Array,
  right: jax.Array,
  layer: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """The sum residual + x @ [left, right].

  Args:
    residual: bfloat16 [M, D].
    x: bfloat16 [M, K].
    left: bfloat16 [L, K, D / 2]; D / 2 is a multiple of `COLUMNS`.
    right: likewise.
    layer: see `gated`.

  Returns:
    bfloat16 [M, D], and float32 [P, M], parts of the sums of squares of its rows.
  """
  width = COLUMNS // 2

  def finish(tile, a, b):
    squares = 0.0
    for i, made in enumerate((a, b)):
      total = tile.companion(i).astype(jnp.float32) + made
      squares += (total * total).sum(axis=1)
      for j in range(2):
        column = tile.column + i * left.shape[2] + j * width
        there = tile.outputs[0].at[tile.rows, pl.ds(column, width)]
        write(tile.staging.at[j], [total[:, j * width : (j + 1) * width]], [there])
    tile.outputs[1].at[lax.div(tile.column, COLUMNS), tile.rows][...] = squares

  parts = left.shape[2] // COLUMNS
  outputs = [residual, jax.ShapeDtypeStruct((parts, len(x)), jnp.float32)]
  companion = Companion(residual, 2, lambda column, part: column + part * left.shape[2])
  pair, staging = (left, right), (1, width)
  total, squares = product("added", x, None, pair, layer, companion, outputs, staging, finish)
  return total, squares
