"""Windowed attention of rows that go on, as one kernel for NVIDIA Hopper; forward only.

The keys that a query sees are one interval, from the start of its document or window to
itself. A program takes one (row, head, some tiles of queries) after the other: a warpgroup
loads the blocks of keys and values that these tiles see, and four hold a tile each and
attend to their part of the blocks, some multiplying while others take exponentials.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from blt_jax.ops.hopper import mosaic
from blt_jax.ops.online_softmax import LOWEST, MASKED

BLOCK = 64  # queries of a tile, and keys of a step
HEAD_DIM = 64
_TILES = 4  # of a program at a time
_SLOTS = 6  # for blocks of keys, and as many for values
_REGISTERS = 112  # of a thread that attends


def interval_attention(
  heads: jax.Array,
  past: tuple[jax.Array, jax.Array],
  layer: jax.Array,
  first: jax.Array,
  num_heads: int,
) -> jax.Array:
  """Softmax attention to an interval of keys that ends at the query's own.

  Args:
    heads: bfloat16 [B, S, N + 2 G, H], those of queries, keys and values; products of
      queries and keys are exponents of two. S is a multiple of `BLOCK`, H is `HEAD_DIM`.
    past: keys and values [L, B, W, G, H] before them; W is a multiple of `BLOCK`.
    layer: int32 [1], which of the L.
    first: int32 [B, S], the first position that each query sees, nowhere before that of
      the query before; -W is the first of all.
    num_heads: N.

  Returns:
    [B, S, N, H] in the dtype of `heads`; softmax in float32.
  """
  batch, seq_len = first.shape
  sizes = _Sizes(
    batch, seq_len // BLOCK, past[0].shape[2] // BLOCK, num_heads, past[0].shape[3]
  )

  def slots(*shape):
    return mosaic.tiled((*shape, HEAD_DIM), heads.dtype)

  def barriers(number, arrivals):
    return plgpu.Barrier(num_arrivals=arrivals, num_barriers=number)

  return plgpu.kernel(
    functools.partial(_kernel, sizes),
    out_type=jax.ShapeDtypeStruct((batch, seq_len, num_heads, HEAD_DIM), heads.dtype),
    scratch_types=[
      slots(2, _TILES * BLOCK),
      plgpu.SMEM((2, _TILES * BLOCK), jnp.int32),
      [slots(_SLOTS, BLOCK)] * 2,
      slots(_TILES, BLOCK),
      [barriers(2, 2), barriers(2, _TILES)],
      [[barriers(_SLOTS, 1), barriers(_SLOTS, _TILES)]] * 2,
    ],
    grid=(mosaic.num_cores(),),
    grid_names=("program",),
    num_threads=_TILES + 1,
    thread_name="warpgroup",
    kernel_name="interval_attention",
    compiler_params=mosaic.COMPILER_PARAMS,
  )(first, _begins(first, sizes), layer, heads, past)


class _Sizes(NamedTuple):
  batch: int
  tiles: int
  past_blocks: int
  num_heads: int
  num_key_heads: int

  @property
  def groups(self):
    """Of tiles, in a row."""
    return -(-self.tiles // _TILES)

  def place(self, item):
    """Row, head and first tile of an item."""
    tile = lax.rem(item, self.groups) * _TILES
    pair = lax.div(item, self.groups)
    return lax.div(pair, self.num_heads), lax.rem(pair, self.num_heads), tile

  def end(self, tile):
    """The block after the last that a group of tiles sees."""
    return jnp.minimum(tile + _TILES, self.tiles) + self.past_blocks

  def items(self):
    """How many this program has, and a function that gives them."""
    total = self.batch * self.num_heads * self.groups
    return mosaic.share(total, "program", mosaic.num_cores())


class _Memory(NamedTuple):
  """References, in the kernel's order, `_smem` in shared memory; pairs: keys and values."""

  first: Any
  begins: Any
  layer: Any
  heads: Any
  past: tuple[Any, Any]
  output: Any
  query_smem: Any
  first_smem: Any
  pair_smem: tuple[Any, Any]
  output_smem: Any


def _begins(first, sizes):
  """Of each tile, the first block that it sees, and the first that all its queries see."""
  tiles = first.reshape(sizes.batch, -1, BLOCK) + sizes.past_blocks * BLOCK
  begins = jnp.stack([tiles[..., 0] // BLOCK, -(-tiles[..., -1] // BLOCK)], axis=-1)
  return jnp.pad(begins, ((0, 0), (0, sizes.groups * _TILES - sizes.tiles), (0, 0)))


def _kernel(sizes, *refs):
  *arrays, (full, empty), pair = refs
  memory = _Memory(*arrays)
  queries = mosaic.Ring(full, empty, 2)
  pair = [mosaic.Ring(full, empty, _SLOTS) for full, empty in pair]
  warpgroup = lax.axis_index("warpgroup")

  @pl.when(warpgroup == _TILES)
  def _():
    plgpu.set_max_registers(24, action="decrease")
    _load(sizes, memory, queries, pair)

  @pl.when(warpgroup < _TILES)
  def _():
    plgpu.set_max_registers(_REGISTERS, action="increase")
    _attend(sizes, memory, queries, pair, warpgroup)


def _load(sizes, memory, queries, pair):
  """Fills the rings with what each item needs."""
  count, item = sizes.items()
  layer = memory.layer[0]

  def load_item(i, step):
    row, head, tile = sizes.place(item(i))
    rows = pl.ds(tile * BLOCK, _TILES * BLOCK)
    queries.wait_until_free(i)
    queries.copy(memory.heads.at[row, rows, head], memory.query_smem, i)
    queries.copy(memory.first.at[row, rows], memory.first_smem, i)
    key_head = lax.div(head, sizes.num_heads // sizes.num_key_heads)

    def load_block(j, step):
      for part, ring in enumerate(pair):
        _load_block(sizes, memory, ring, part, step, j, (layer, row, key_head))
      return step + 1

    return lax.fori_loop(memory.begins[row, tile, 0], sizes.end(tile), load_block, step)

  lax.fori_loop(0, count, load_item, jnp.int32(0))


def _load_block(sizes, memory, ring, part, step, j, place):
  """Copies block j of keys or values, which is one of the past or of the row."""
  layer, row, key_head = place
  own = sizes.num_heads + part * sizes.num_key_heads + key_head
  smem = memory.pair_smem[part]
  ring.wait_until_free(step)

  @pl.when(j < sizes.past_blocks)
  def _():
    rows = pl.ds(j * BLOCK, BLOCK)
    ring.copy(memory.past[part].at[layer, row, rows, key_head], smem, step)

  @pl.when(j >= sizes.past_blocks)
  def _():
    rows = pl.ds((j - sizes.past_blocks) * BLOCK, BLOCK)
    ring.copy(memory.heads.at[row, rows, own], smem, step)


def _attend(sizes, memory, queries, pair, warpgroup):
  """Attends with one tile of each item."""
  count, item = sizes.items()
  own_rows = pl.ds(warpgroup * BLOCK, BLOCK)

  def skip(_, step):
    for ring in pair:
      ring.wait_until_full(step)
      ring.release(step)
    return step + 1

  def attend_item(i, step):
    row, head, group_tile = sizes.place(item(i))
    tile = group_tile + warpgroup
    exists = tile < sizes.tiles
    begin, end = memory.begins[row, group_tile, 0], sizes.end(group_tile)
    own_begin, clear = memory.begins[row, tile, 0], memory.begins[row, tile, 1]
    own_begin = jnp.where(exists, own_begin, end)
    diagonal = jnp.where(exists, tile + sizes.past_blocks, end)
    own_end = jnp.minimum(diagonal + 1, end)
    clear = jnp.clip(clear, own_begin, diagonal)
    queries.wait_until_full(i)
    here = queries.slot(i)
    first = mosaic.load(memory.first_smem.at[here, own_rows], mosaic.PER_ROW)
    first += sizes.past_blocks * BLOCK
    add = functools.partial(_add, memory, pair, memory.query_smem.at[here, own_rows])
    begun = functools.partial(_hide, first, False)
    causal = functools.partial(_hide, first, True)

    step = lax.fori_loop(begin, own_begin, skip, step)
    carry = _nothing(), step
    carry = lax.fori_loop(own_begin, clear, functools.partial(add, begun), carry)
    carry = lax.fori_loop(clear, diagonal, functools.partial(add, lambda x, _: x), carry)
    carry = lax.fori_loop(diagonal, own_end, functools.partial(add, causal), carry)
    (total, _, weight_sum), step = carry
    step = lax.fori_loop(own_end, end, skip, step)
    queries.release(i)
    output = total * lax.broadcast_in_dim(1 / weight_sum, total.shape, [0])
    there = memory.output.at[row, pl.ds(tile * BLOCK, BLOCK), head]
    _write(output, memory.output_smem.at[warpgroup], there, exists)
    return step

  lax.fori_loop(0, count, attend_item, jnp.int32(0))
  plgpu.wait_smem_to_gmem(0)


def _nothing():
  """Sum of weighted values, largest score and sum of weights, of no keys."""

  def of(shape, value, layout):
    return plgpu.layout_cast(jnp.full(shape, value, jnp.float32), layout)

  return (
    of((BLOCK, HEAD_DIM), 0, mosaic.LAYOUT),
    of(BLOCK, LOWEST, mosaic.PER_ROW),
    of(BLOCK, 0, mosaic.PER_ROW),
  )


def _add(memory, pair, query, hide, j, carry):
  """One step of an online softmax, in powers of two."""
  (total, largest, weight_sum), step = carry
  keys, values = pair
  key, value = (smem.at[keys.slot(step)] for smem in memory.pair_smem)

  def product(scores):
    plgpu.wgmma(scores, query, key.T)
    return scores[...]

  keys.wait_until_full(step)
  scores = pl.run_scoped(product, plgpu.ACC((BLOCK, BLOCK), jnp.float32))
  keys.release(step)
  scores = hide(scores, j)
  new_largest = jnp.maximum(largest, scores.max(axis=1))
  rescale = jnp.exp2(largest - new_largest)
  weights = jnp.exp2(scores - lax.broadcast_in_dim(new_largest, scores.shape, [0]))
  weight_sum = weight_sum * rescale + weights.sum(axis=1)
  total *= lax.broadcast_in_dim(rescale, total.shape, [0])
  weights = weights.astype(memory.heads.dtype)
  values.wait_until_full(step)
  total = pl.run_state(lambda ref: plgpu.wgmma(ref, weights, value))(plgpu.ACC.init(total))
  values.release(step)
  return (total, new_largest, weight_sum), step + 1


def _hide(first, is_diagonal, scores, j):
  """Masks what is before the first key of each query, and behind the query itself."""
  column, own = (
    plgpu.broadcasted_iota(jnp.int32, scores.shape, axis, layout=mosaic.LAYOUT)
    for axis in (1, 0)
  )
  visible = column >= lax.broadcast_in_dim(first - j * BLOCK, scores.shape, [0])
  if is_diagonal:
    visible &= column <= own
  return jnp.where(visible, scores, MASKED)


def _write(output, staging, there, exists):
  plgpu.wait_smem_to_gmem(0, wait_read_only=True)
  staging[...] = output.astype(staging.dtype)
  plgpu.commit_smem()

  @pl.when(exists)
  def _():
    plgpu.copy_smem_to_gmem(staging, there)
