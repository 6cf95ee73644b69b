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
_LAG = 1  # steps that the second warpgroup is behind
_GROUP = 16  # tiles of rows that go through all columns together, for the cache's sake


class _Tile(NamedTuple):
  """What a warpgroup works at, and the memory it shares with copies.

  Attributes:
    rows: the slice of them.
    column: the first of them.
    inputs: references.
    outputs: references.
    staging: shared memory on the way to outputs.
    residual: gives the part of the residual stream at the columns of either matrix.
  """

  rows: Any
  column: Any
  inputs: Sequence[Any]
  outputs: Sequence[Any]
  staging: Any
  residual: Callable[[int], Any]


def gated(
  x: jax.Array,
  squares: jax.Array,
  gate: jax.Array,
  up: jax.Array,
  layer: jax.Array,
  epsilon: float,
) -> jax.Array:
  """silu(norm(x) @ gate) * (norm(x) @ up).

  Args:
    x: bfloat16 [M, K]; M is a multiple of `ROWS`, K of `DEPTH`.
    squares: float32 [P, M], whose sum over P is that of the squares of x's rows.
    gate: bfloat16 [L, K, F], with the norm's gain; F is a multiple of `COLUMNS`.
    up: likewise.
    layer: int32 [1], which of the L.
    epsilon: of the norm.

  Returns:
    bfloat16 [M, F].
  """

  def finish(tile, a, b, squares):
    scale = _inverse_rms(squares, x.shape[1], epsilon)
    half = a * (scale * 0.5)
    hidden = (half + half * jnp.tanh(half)) * (b * scale)
    columns = pl.ds(tile.column, COLUMNS)
    _write(tile.staging, [hidden.astype(x.dtype)], [tile.outputs[0].at[tile.rows, columns]])

  out = jax.ShapeDtypeStruct((x.shape[0], gate.shape[2]), x.dtype)
  return _product(x, (gate, up), layer, [squares], [out], (1, COLUMNS), _load_squares, finish)[0]


def rotated(
  x: jax.Array,
  squares: jax.Array,
  even: jax.Array,
  odd: jax.Array,
  layer: jax.Array,
  angles: tuple[jax.Array, jax.Array],
  num_rotated: int,
  epsilon: float,
) -> jax.Array:
  """Heads of norm(x), the first `num_rotated` of them rotated.

  Args:
    x: see `gated`, as are `squares`, `layer` and `epsilon`.
    even: bfloat16 [L, K, heads * H / 2], which gives the first of each pair of a head.
    odd: likewise, the second ones.
    angles: cosines and sines, float32 [M, H / 2]; H / 2 divides `COLUMNS`.
    num_rotated: heads, a multiple of `COLUMNS` / (H / 2).

  Returns:
    bfloat16 [M, heads, H], in each head all first ones before all second ones.
  """
  half = angles[0].shape[1]
  heads = even.shape[2] // half

  def begin(tile):
    return _load_squares(tile), *(
      hopper.load(ref.at[tile.rows], hopper.LAYOUT, optimized=False) for ref in tile.inputs[1:]
    )

  def finish(tile, a, b, values):
    squares, cos, sin = values
    scale = _inverse_rms(squares, x.shape[1], epsilon)
    is_rotated = tile.column < num_rotated * half
    cos, sin = jnp.where(is_rotated, cos, 1.0), jnp.where(is_rotated, sin, 0.0)
    a, b = a * scale, b * scale
    for i in range(0, COLUMNS // half, 2):
      pieces, places = [], []
      for j in (i, i + 1):
        first, second = (m[:, j * half : (j + 1) * half] for m in (a, b))
        pieces += [first * cos - second * sin, first * sin + second * cos]
        there = tile.outputs[0].at[tile.rows, lax.div(tile.column, half) + j]
        places += [there.at[:, pl.ds(k * half, half)] for k in range(2)]
      _write(tile.staging, [piece.astype(x.dtype) for piece in pieces], places)

  out = jax.ShapeDtypeStruct((x.shape[0], heads, 2 * half), x.dtype)
  inputs = [squares, *angles]
  return _product(x, (even, odd), layer, inputs, [out], (4, half), begin, finish)[0]


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
  width = residual.shape[1]

  def finish(tile, a, b, _):
    squares = 0.0
    for i, product in enumerate((a, b)):
      total = tile.residual(i).astype(jnp.float32) + product
      squares += (total * total).sum(axis=1)
      columns = pl.ds(tile.column + i * width // 2, COLUMNS)
      _write(tile.staging, [total.astype(x.dtype)], [tile.outputs[0].at[tile.rows, columns]])
    tile.outputs[1].at[lax.div(tile.column, COLUMNS), tile.rows][...] = squares

  parts = width // 2 // COLUMNS
  outputs = [residual, jax.ShapeDtypeStruct((parts, len(x)), jnp.float32)]
  staging, begin = (1, COLUMNS), lambda tile: None
  return tuple(
    _product(x, (left, right), layer, [residual], outputs, staging, begin, finish, True)
  )


def _load_squares(tile):
  squares = tile.inputs[0]
  return [
    hopper.load(squares.at[i, tile.rows], hopper.PER_ROW, optimized=False)
    for i in range(squares.shape[0])
  ]


def _inverse_rms(squares, width, epsilon):
  """1 / rms of the rows, beside each column."""
  scale = lax.rsqrt(functools.reduce(jnp.add, squares) / width + epsilon)
  return lax.broadcast_in_dim(scale, (_PART, COLUMNS), [0])


def _write(staging, pieces, places):
  """Starts to copy pieces from registers to where they belong."""
  plgpu.wait_smem_to_gmem(0, wait_read_only=True)
  for i, piece in enumerate(pieces):
    staging[i] = piece
  plgpu.commit_smem()
  for i, place in enumerate(places):
    plgpu.copy_smem_to_gmem(staging.at[i], place)


def _product(x, pair, layer, inputs, outputs, staging, begin, finish, has_residual=False):
  """Runs `finish` on the products of each tile, and on what `begin` gave before them."""
  num_pairs = hopper.num_cores() // 2
  row_tiles, column_tiles = len(x) // ROWS, pair[0].shape[2] // COLUMNS
  tiles = row_tiles * column_tiles
  group = math.gcd(row_tiles, _GROUP)
  products = x.shape[1] // DEPTH
  steps = products + 2 * has_residual

  def kernel(x_ref, first_ref, second_ref, layer_ref, *refs):
    input_refs, refs = refs[: len(inputs)], refs[len(inputs) :]
    output_refs, scratch = refs[: len(outputs)], refs[len(outputs) :]
    x_smem, pair_smem, staging_smem, full, empty, lag = scratch
    warpgroup, me = lax.axis_index("warpgroup"), lax.axis_index("pair")
    count = lax.div(tiles + num_pairs - 1 - me, num_pairs)

    def place(i):
      """First row and column of the i-th tile of this program."""
      number = me + i * num_pairs
      inside = lax.rem(number, group * column_tiles)
      row_tile = lax.div(number, group * column_tiles) * group + lax.rem(inside, group)
      row = (2 * row_tile + lax.axis_index("half")) * (ROWS // 2)
      return row, lax.div(inside, group) * COLUMNS

    def slot(step):
      return lax.rem(step, _STAGES)

    def load_products(row, column, k, here, layer):
      depth = pl.ds(k * DEPTH, DEPTH)
      rows = x_ref.at[pl.ds(row, ROWS // 2), depth]
      plgpu.copy_gmem_to_smem(rows, x_smem.at[here], full.at[here])
      for i, ref in enumerate((first_ref, second_ref)):
        there = ref.at[layer, depth, pl.ds(column, COLUMNS)]
        plgpu.copy_gmem_to_smem(
          there, pair_smem.at[here, i], full.at[here], collective_axes="half"
        )

    def load_residual(row, column, part, here):
      columns = pl.ds(column + part * pair[0].shape[2], COLUMNS)
      for i in range(2):
        there = input_refs[0].at[pl.ds(row + i * _PART, _PART), columns]
        plgpu.copy_gmem_to_smem(there, pair_smem.at[here, i], full.at[here])
      plgpu.barrier_arrive(full.at[here])

    @pl.when(warpgroup == 2)
    def _load():
      plgpu.set_max_registers(40, action="decrease")
      layer = layer_ref[0]

      @pl.loop(0, count * steps)
      def _(step):
        row, column = place(lax.div(step, steps))
        k, here = lax.rem(step, steps), slot(step)

        @pl.when(step >= _STAGES)
        def _():
          plgpu.barrier_wait(empty.at[here])

        @pl.when(k < products)
        def _():
          load_products(row, column, k, here, layer)

        if has_residual:

          @pl.when(k >= products)
          def _():
            load_residual(row, column, k - products, here)

      # The other program still tells this one what it has read.
      @pl.loop(jnp.maximum(count * steps - _STAGES, 0), count * steps)
      def _(step):
        plgpu.barrier_wait(empty.at[slot(step)])

    def multiply(start):
      own = pl.ds(warpgroup * _PART, _PART)

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

          @pl.when((warpgroup == 0) & (start + k == _LAG))
          def _():
            plgpu.barrier_arrive(lag)

        plgpu.wgmma_wait(0)
        plgpu.barrier_arrive(empty.at[slot(start + products - 1)])
        return a[...], b[...]

      accumulator = plgpu.ACC((_PART, COLUMNS), jnp.float32)
      return pl.run_scoped(run, accumulator, accumulator)

    @pl.when(warpgroup < 2)
    def _compute():
      plgpu.set_max_registers(232, action="increase")

      @pl.when((warpgroup == 1) & (count > 0))
      def _():
        plgpu.barrier_wait(lag)

      @pl.loop(0, count)
      def _(i):
        row, column = place(i)

        def residual(part):
          here = slot(i * steps + products + part)
          plgpu.barrier_wait(full.at[here])
          value = hopper.load(pair_smem.at[here, warpgroup], hopper.LAYOUT)
          plgpu.barrier_arrive(empty.at[here])
          return value

        rows = pl.ds(row + warpgroup * _PART, _PART)
        own_staging = staging_smem.at[warpgroup]
        tile = _Tile(rows, column, input_refs, output_refs, own_staging, residual)
        before = begin(tile)
        finish(tile, *multiply(i * steps), before)

      plgpu.wait_smem_to_gmem(0)

  return plgpu.kernel(
    kernel,
    out_type=outputs,
    scratch_types=[
      hopper.tiled((_STAGES, ROWS // 2, DEPTH), x.dtype),
      hopper.tiled((_STAGES, 2, DEPTH, COLUMNS), x.dtype),
      hopper.tiled((2, staging[0], _PART, staging[1]), x.dtype),
      plgpu.Barrier(num_arrivals=3, num_barriers=_STAGES),
      plgpu.ClusterBarrier(collective_axes=("half",), num_arrivals=2, num_barriers=_STAGES),
      plgpu.Barrier(),
    ],
    grid=(num_pairs,),
    grid_names=("pair",),
    cluster=(2,),
    cluster_names=("half",),
    num_threads=3,
    thread_name="warpgroup",
    compiler_params=hopper.COMPILER_PARAMS,
  )(x, *pair, layer, *inputs)
