"""A product of rows and weights with an ending of its own, as one kernel for NVIDIA Hopper.

A program multiplies 128 rows with 128 columns of two matrices at a time, `a = x @ first`
and `b = x @ second`, and what follows sees both. Programs go by pairs, which share the
tiles of the matrices; in a program, one warpgroup loads and two multiply 64 rows each.
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

from blt_jax.ops.hopper import mosaic

ROWS = 256  # of a pair of programs
COLUMNS = 128  # of each of the two matrices
DEPTH = 64  # of a step
_PART = 64  # rows of a warpgroup
_SLOTS = 4  # for steps
_GROUP = 16  # tiles of rows that go through all columns together, for the cache's sake


class Tile(NamedTuple):
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


class Companion(NamedTuple):
  """An array [M, *] that comes beside the products.

  Attributes:
    array: the array.
    parts: how many of them, COLUMNS wide.
    column: gives the first column of a part, from that of the tile.
  """

  array: Any
  parts: int
  column: Callable[[Any, Any], Any]


def product(
  name: str,
  x: jax.Array,
  scale: jax.Array | None,
  pair: tuple[jax.Array, jax.Array],
  layer: jax.Array,
  companion: Companion | None,
  outputs: Sequence[Any],
  staging: tuple[int, int],
  finish: Callable[..., None],
) -> Sequence[jax.Array]:
  """Runs `finish` on the products of each tile.

  Args:
    name: of the kernel.
    x: bfloat16 [M, K]; M is a multiple of `ROWS`, K of `DEPTH`.
    scale: float32 [M], for `finish`; K is at least `_SLOTS` * `DEPTH` then.
    pair: two matrices bfloat16 [L, K, N]; N is a multiple of `COLUMNS`.
    layer: int32 [1], which of the L.
    companion: for `finish`.
    outputs: their shapes.
    staging: how many pieces `write` is given at a time, and how wide.
    finish: takes a `Tile` and its products with both matrices, float32 [64, `COLUMNS`].

  Returns:
    The outputs.
  """
  sizes = _Sizes(
    row_tiles=len(x) // ROWS,
    column_tiles=pair[0].shape[2] // COLUMNS,
    products=x.shape[1] // DEPTH,
    companions=companion.parts if companion else 0,
  )
  return plgpu.kernel(
    functools.partial(_kernel, sizes, companion, finish),
    out_type=outputs,
    scratch_types=_scratch(x.dtype, staging),
    grid=(mosaic.num_cores() // 2,),
    grid_names=("pair",),
    cluster=(2,),
    cluster_names=("half",),
    num_threads=3,
    thread_name="warpgroup",
    kernel_name=name,
    compiler_params=mosaic.COMPILER_PARAMS,
  )(x, pair, layer, scale, companion and companion.array)


def write(staging: Any, pieces: Sequence[Any], places: Sequence[Any]) -> None:
  """Starts to copy pieces from registers to where they belong; the copy before may go on."""
  plgpu.wait_smem_to_gmem(1, wait_read_only=True)
  for i, piece in enumerate(pieces):
    staging[i] = piece.astype(staging.dtype)
  plgpu.commit_smem()
  for i, place in enumerate(places):
    plgpu.copy_smem_to_gmem(staging.at[i], place, commit_group=i == len(places) - 1)


class _Sizes(NamedTuple):
  """How many tiles there are, and steps of each: of its products and of a companion."""

  row_tiles: int
  column_tiles: int
  products: int
  companions: int

  @property
  def steps(self):
    return self.products + self.companions

  def tiles(self):
    """How many this program has, and a function that gives their first row and column."""
    total = self.row_tiles * self.column_tiles
    count, number = mosaic.share(total, "pair", mosaic.num_cores() // 2)
    return count, lambda i: self._place(number(i))

  def _place(self, number):
    group = math.gcd(self.row_tiles, _GROUP)
    inside = lax.rem(number, group * self.column_tiles)
    row_tile = lax.div(number, group * self.column_tiles) * group + lax.rem(inside, group)
    row = (2 * row_tile + lax.axis_index("half")) * (ROWS // 2)
    return row, lax.div(inside, group) * COLUMNS


class _Memory(NamedTuple):
  """References, `_smem` in shared memory."""

  x: Any
  pair: tuple[Any, Any]
  layer: Any
  scale: Any
  companion: Companion | None
  outputs: Sequence[Any]
  x_smem: Any
  pair_smem: Any
  scale_smem: Any
  staging_smem: Any


def _scratch(dtype, staging):
  """Shared memory and barriers, in the order that `_kernel` takes them."""
  read = plgpu.ClusterBarrier(collective_axes=("half",), num_arrivals=2, num_barriers=_SLOTS)
  return [
    mosaic.tiled((_SLOTS, ROWS // 2, DEPTH), dtype),
    mosaic.tiled((_SLOTS, 2, DEPTH, COLUMNS), dtype),
    plgpu.SMEM((2, ROWS // 2), jnp.float32),
    mosaic.tiled((2, 2, staging[0], _PART, staging[1]), dtype),
    plgpu.Barrier(num_arrivals=3, num_barriers=_SLOTS),
    read,
    plgpu.Barrier(num_barriers=2),
  ]


def _kernel(sizes, companion, finish, x, pair, layer, scale, beside, *refs):
  *outputs, x_smem, pair_smem, scale_smem, staging_smem, full, empty, scale_full = refs
  companion = companion and companion._replace(array=beside)
  smem = x_smem, pair_smem, scale_smem, staging_smem
  memory = _Memory(x, pair, layer, scale, companion, outputs, *smem)
  ring, scales = mosaic.Ring(full, empty, _SLOTS), mosaic.Ring(scale_full, None, 2)
  warpgroup = lax.axis_index("warpgroup")

  @pl.when(warpgroup == 2)
  def _():
    plgpu.set_max_registers(40, action="decrease")
    _load(sizes, memory, ring, scales)

  @pl.when(warpgroup < 2)
  def _():
    plgpu.set_max_registers(232, action="increase")
    _compute(sizes, memory, ring, scales, finish, warpgroup)


def _load(sizes, memory, ring, scales):
  """Fills the ring with what each step of each tile needs."""
  count, place = sizes.tiles()
  layer = memory.layer[0]

  @pl.loop(0, count * sizes.steps)
  def _(step):
    i, k = lax.div(step, sizes.steps), lax.rem(step, sizes.steps)
    row, column = place(i)
    ring.wait_until_free(step)

    @pl.when(k < sizes.products)
    def _():
      _load_products(memory, ring, step, row, column, k, layer)

    if memory.companion:
      part = k - sizes.products
      pl.when(part >= 0)(lambda: _load_companion(memory, ring, step, row, column, part))
    if memory.scale is not None:  # this step had room, so the tile before the last is done
      scale = memory.scale.at[pl.ds(row, ROWS // 2)]
      pl.when(k == 0)(lambda: scales.copy(scale, memory.scale_smem, i))

  # The other program still tells this one what it has read.
  @pl.loop(jnp.maximum(count * sizes.steps - _SLOTS, 0), count * sizes.steps)
  def _(step):
    ring.wait_until_read(step)


def _load_products(memory, ring, step, row, column, k, layer):
  depth = pl.ds(k * DEPTH, DEPTH)
  ring.copy(memory.x.at[pl.ds(row, ROWS // 2), depth], memory.x_smem, step)
  for i, matrix in enumerate(memory.pair):
    there = matrix.at[layer, depth, pl.ds(column, COLUMNS)]
    ring.copy(there, memory.pair_smem.at[:, i], step, collective_axes="half")


def _load_companion(memory, ring, step, row, column, part):
  columns = pl.ds(memory.companion.column(column, part), COLUMNS)
  for i in range(2):
    there = memory.companion.array.at[pl.ds(row + i * _PART, _PART), columns]
    ring.copy(there, memory.pair_smem.at[:, i], step)
  plgpu.barrier_arrive(ring.full.at[ring.slot(step)])  # two copies, where products have three


def _compute(sizes, memory, ring, scales, finish, warpgroup):
  """Multiplies one half of the rows of each tile, and finishes it."""
  count, place = sizes.tiles()
  own = pl.ds(warpgroup * _PART, _PART)

  @pl.loop(0, count)
  def _(i):
    row, column = place(i)

    def scale(columns):
      scales.wait_until_full(i)
      value = mosaic.load(memory.scale_smem.at[scales.slot(i), own], mosaic.PER_ROW)
      return lax.broadcast_in_dim(value, (_PART, columns), [0])

    def companion(part):
      step = i * sizes.steps + sizes.products + part
      ring.wait_until_full(step)
      value = mosaic.load(memory.pair_smem.at[ring.slot(step), warpgroup], mosaic.LAYOUT)
      plgpu.commit_smem()  # all four warps have read it
      ring.release(step)
      return value

    rows = pl.ds(row + warpgroup * _PART, _PART)
    own_staging = memory.staging_smem.at[warpgroup]
    tile = Tile(rows, column, scale, companion, memory.outputs, own_staging)
    finish(tile, *_multiply(sizes, memory, ring, i * sizes.steps, own))

  plgpu.wait_smem_to_gmem(0)


def _multiply(sizes, memory, ring, start, own):
  """Products of `own` rows of a tile, whose steps begin at `start`, with both matrices."""

  def run(*accumulators):
    @pl.loop(0, sizes.products)
    def _(k):
      step = start + k
      ring.wait_until_full(step)
      here = ring.slot(step)
      for i, accumulator in enumerate(accumulators):
        plgpu.wgmma(accumulator, memory.x_smem.at[here, own], memory.pair_smem.at[here, i])
      plgpu.wgmma_wait(2)  # so those of the step before are done

      @pl.when(k > 0)
      def _():
        ring.release(step - 1)

    plgpu.wgmma_wait(0)
    ring.release(start + sizes.products - 1)
    return tuple(accumulator[...] for accumulator in accumulators)

  accumulator = plgpu.ACC((_PART, COLUMNS), jnp.float32)
  return pl.run_scoped(run, accumulator, accumulator)
