"""Products of rows and weights with what follows them, as one kernel for NVIDIA Hopper.

A program multiplies 128 rows with 128 columns of two matrices at a time, `a = x @ first`
and `b = x @ second`, and what follows sees both: a gate and its value, the two halves of a
rotation, or two parts of the same row. Programs go by pairs, which share the matrices'
tiles; in a program, one warpgroup loads and two multiply 64 rows each, the second a few
steps behind the first, so that one multiplies while the other finishes its tile.

Norms are taken apart: their gains belong to the weights, and `1 / rms` of a row comes last.
For it, `added` gives the sums of squares of what it writes.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from blt_jax.ops import hopper

ROWS = 256  # of a pair of programs
COLUMNS = 128  # of each of the two matrices
DEPTH = 64  # of a step
_PART = DEPTH  # rows of a warpgroup
_STAGES = 4  # steps that are loaded ahead
_GROUP = 16  # tiles of rows that go through all columns together, for the cache's sake


class _Tile(NamedTuple):
  """Where the products of a warpgroup go.

  Attributes:
    rows: the slice of them.
    column: the first one, in either matrix.
    scale: gives the factor of each row, beside so many columns.
    companion: gives a part of what comes beside the products, [64, COLUMNS].
    outputs: references.
    staging: shared memory on the way there, for two parts of them.
  """

  rows: Any
  column: Any
  scale: Callable[[int], Any]
  companion: Callable[[int], Any]
  outputs: Sequence[Any]
  staging: Any


class _Companion(NamedTuple):
  """An array [M, *] that comes beside the products.

  Attributes:
    array: the array.
    parts: how many of them, COLUMNS wide.
    column: gives the first column of a part, from that of the tile.
  """

  array: Any
  parts: int
  column: Callable[[Any, Any], Any]


def gated(
  x: jax.Array, scale: jax.Array, gate: jax.Array, up: jax.Array, layer: jax.Array
) -> jax.Array:
  """silu(x @ gate) * (x @ up) of scaled rows.

  Args:
    x: bfloat16 [M, K]; M is a multiple of `ROWS`, K of `DEPTH`.
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
      _write(tile.staging.at[i], [hidden], [there])

  out = jax.ShapeDtypeStruct((x.shape[0], gate.shape[2]), x.dtype)
  return _product(x, scale, (gate, up), layer, None, [out], (1, width), finish)[0]


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
    x: see `gated`, as are `scale` and `layer`.
    even: bfloat16 [L, K, heads * H / 2], which gives the first of each pair of a head.
    odd: likewise, the second ones.
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
      _write(tile.staging.at[i % 2], pieces, places)

  out = jax.ShapeDtypeStruct((x.shape[0], heads, 2 * half), x.dtype)
  companion = _Companion(angles, 1, lambda column, part: 0)
  return _product(x, scale, (even, odd), layer, companion, [out], (2, half), finish)[0]


def angle_parts(cos: jax.Array, sin: jax.Array) -> jax.Array:
  """Cosines and sines float32 [M, H / 2] as sums of two bfloat16 each: [M, 2 H]."""
  parts = []
  for x in (cos, sin):
    high = x.astype(jnp.bfloat16)
    parts += [high, (x - high.astype(jnp.float32)).astype(jnp.bfloat16)]
  return jnp.concatenate(parts, axis=1)


def added(
  residual: jax.Array, x: jax.Array, left: jax.Array, right: jax.Array, layer: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """residual + x @ [left, right].

  Args:
    residual: bfloat16 [M, D].
    x: bfloat16 [M, K].
    left: bfloat16 [L, K, D / 2]; D / 2 is a multiple of `COLUMNS`.
    right: likewise.
    layer: int32 [1], which of the L.

  Returns:
    bfloat16 [M, D], and float32 [P, M], parts of the sums of squares of its rows.
  """
  width = COLUMNS // 2

  def finish(tile, a, b):
    squares = 0.0
    for i, product in enumerate((a, b)):
      total = tile.companion(i).astype(jnp.float32) + product
      squares += (total * total).sum(axis=1)
      for j in range(2):
        column = tile.column + i * left.shape[2] + j * width
        there = tile.outputs[0].at[tile.rows, pl.ds(column, width)]
        _write(tile.staging.at[j], [total[:, j * width : (j + 1) * width]], [there])
    tile.outputs[1].at[lax.div(tile.column, COLUMNS), tile.rows][...] = squares

  parts = left.shape[2] // COLUMNS
  outputs = [residual, jax.ShapeDtypeStruct((parts, len(x)), jnp.float32)]
  companion = _Companion(residual, 2, lambda column, part: column + part * left.shape[2])
  return tuple(
    _product(x, None, (left, right), layer, companion, outputs, (1, width), finish)
  )


def _write(staging, pieces, places):
  """Starts to copy pieces from registers to where they belong; the copy before may go on."""
  plgpu.wait_smem_to_gmem(1, wait_read_only=True)
  for i, piece in enumerate(pieces):
    staging[i] = piece.astype(staging.dtype)
  plgpu.commit_smem()
  for i, place in enumerate(places):
    plgpu.copy_smem_to_gmem(staging.at[i], place, commit_group=i == len(places) - 1)


def _product(x, scale, pair, layer, companion, outputs, staging, finish):
  """Runs `finish` on the products of each tile of rows and columns."""
  num_pairs = hopper.num_cores() // 2
  row_tiles, column_tiles = len(x) // ROWS, pair[0].shape[2] // COLUMNS
  tiles = row_tiles * column_tiles
  group = math.gcd(row_tiles, _GROUP)
  products = x.shape[1] // DEPTH
  steps = products + (companion.parts if companion else 0)
  rows_here = ROWS // 2
  inputs = [x for x in (scale, companion and companion.array) if x is not None]

  def kernel(x_ref, first_ref, second_ref, layer_ref, *refs):
    input_refs, refs = refs[: len(inputs)], refs[len(inputs) :]
    output_refs, scratch = refs[: len(outputs)], refs[len(outputs) :]
    x_smem, pair_smem, scale_smem, staging_smem, full, empty, scale_full = scratch
    warpgroup, me = lax.axis_index("warpgroup"), lax.axis_index("pair")
    count = lax.div(tiles + num_pairs - 1 - me, num_pairs)

    def place(i):
      """First row and column of the i-th tile of this program."""
      number = me + i * num_pairs
      inside = lax.rem(number, group * column_tiles)
      row_tile = lax.div(number, group * column_tiles) * group + lax.rem(inside, group)
      row = (2 * row_tile + lax.axis_index("half")) * rows_here
      return row, lax.div(inside, group) * COLUMNS

    def slot(step):
      return lax.rem(step, _STAGES)

    def load_products(row, column, k, here, layer):
      depth = pl.ds(k * DEPTH, DEPTH)
      rows = x_ref.at[pl.ds(row, rows_here), depth]
      plgpu.copy_gmem_to_smem(rows, x_smem.at[here], full.at[here])
      for i, ref in enumerate((first_ref, second_ref)):
        there = ref.at[layer, depth, pl.ds(column, COLUMNS)]
        plgpu.copy_gmem_to_smem(
          there, pair_smem.at[here, i], full.at[here], collective_axes="half"
        )

    def load_companion(row, column, part, here):
      columns = pl.ds(companion.column(column, part), COLUMNS)
      for i in range(2):
        there = input_refs[-1].at[pl.ds(row + i * _PART, _PART), columns]
        plgpu.copy_gmem_to_smem(there, pair_smem.at[here, i], full.at[here])
      plgpu.barrier_arrive(full.at[here])

    @pl.when(warpgroup == 2)
    def _load():
      plgpu.set_max_registers(40, action="decrease")
      layer = layer_ref[0]

      @pl.loop(0, count * steps)
      def _(step):
        i, k, here = lax.div(step, steps), lax.rem(step, steps), slot(step)
        row, column = place(i)

        @pl.when(step >= _STAGES)
        def _():
          plgpu.barrier_wait(empty.at[here])

        @pl.when(k < products)
        def _():
          load_products(row, column, k, here, layer)

        if companion:

          @pl.when(k >= products)
          def _():
            load_companion(row, column, k - products, here)

        if scale is not None:

          @pl.when(k == 0)
          def _():
            there = input_refs[0].at[pl.ds(row, rows_here)]
            two = lax.rem(i, 2)
            plgpu.copy_gmem_to_smem(there, scale_smem.at[two], scale_full.at[two])

      # The other program still tells this one what it has read.
      @pl.loop(jnp.maximum(count * steps - _STAGES, 0), count * steps)
      def _(step):
        plgpu.barrier_wait(empty.at[slot(step)])

    own = pl.ds(warpgroup * _PART, _PART)

    def multiply(start):
      def run(a, b):
        @pl.loop(0, products)
        def _(k):
          here = slot(start + k)
          plgpu.barrier_wait(full.at[here])
          for i, accumulator in enumerate((a, b)):
            plgpu.wgmma(accumulator, x_smem.at[here, own], pair_smem.at[here, i])
          plgpu.wgmma_wait(2)  # so those of the step before are done

          @pl.when(k > 0)
          def _():
            plgpu.barrier_arrive(empty.at[slot(start + k - 1)])

        plgpu.wgmma_wait(0)
        plgpu.barrier_arrive(empty.at[slot(start + products - 1)])
        return a[...], b[...]

      accumulator = plgpu.ACC((_PART, COLUMNS), jnp.float32)
      return pl.run_scoped(run, accumulator, accumulator)

    @pl.when(warpgroup < 2)
    def _compute():
      plgpu.set_max_registers(232, action="increase")

      @pl.loop(0, count)
      def _(i):
        row, column = place(i)

        def scale_beside(columns):
          two = lax.rem(i, 2)
          plgpu.barrier_wait(scale_full.at[two])
          value = hopper.load(scale_smem.at[two, own], hopper.PER_ROW)
          return lax.broadcast_in_dim(value, (_PART, columns), [0])

        def companion_part(part):
          here = slot(i * steps + products + part)
          plgpu.barrier_wait(full.at[here])
          value = hopper.load(pair_smem.at[here, warpgroup], hopper.LAYOUT)
          plgpu.barrier_arrive(empty.at[here])
          return value

        rows = pl.ds(row + warpgroup * _PART, _PART)
        mine = output_refs, staging_smem.at[warpgroup]
        tile = _Tile(rows, column, scale_beside, companion_part, *mine)
        finish(tile, *multiply(i * steps))

      plgpu.wait_smem_to_gmem(0)

  return plgpu.kernel(
    kernel,
    out_type=outputs,
    scratch_types=[
      hopper.tiled((_STAGES, rows_here, DEPTH), x.dtype),
      hopper.tiled((_STAGES, 2, DEPTH, COLUMNS), x.dtype),
      plgpu.SMEM((2, rows_here), jnp.float32),
      hopper.tiled((2, 2, staging[0], _PART, staging[1]), x.dtype),
      plgpu.Barrier(num_arrivals=3, num_barriers=_STAGES),
      plgpu.ClusterBarrier(collective_axes=("half",), num_arrivals=2, num_barriers=_STAGES),
      plgpu.Barrier(num_barriers=2),
    ],
    grid=(num_pairs,),
    grid_names=("pair",),
    cluster=(2,),
    cluster_names=("half",),
    num_threads=3,
    thread_name="warpgroup",
    compiler_params=hopper.COMPILER_PARAMS,
  )(x, *pair, layer, *inputs)
