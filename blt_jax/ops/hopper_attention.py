"""Windowed attention of rows that go on, as one kernel for NVIDIA Hopper; forward only.

The keys that a query sees are one interval, from the start of its document or window to
itself. A program goes through (row, head, tiles of queries); one warpgroup loads the blocks
of keys and values that the tiles see, three hold a tile each and attend to their part of
them, so that some multiply while others take exponentials.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from blt_jax.ops import hopper

BLOCK = 64  # queries of a tile, and keys of a step
HEAD_DIM = 64
_TILES = 3  # of a program at a time
_STAGES = 8
_MASKED, _LOWEST = -1e30, -1e29


def interval_attention(
  heads: jax.Array,
  past: tuple[jax.Array, jax.Array],
  layer: jax.Array,
  first: jax.Array,
  num_heads: int,
) -> jax.Array:
  """Softmax attention to an interval of keys that ends at the query's own.

  Args:
    heads: bfloat16 [B, S, N + 2 G, H], those of queries, keys and values; the queries hold
      what makes of products the exponents of two. S is a multiple of `BLOCK`, H `HEAD_DIM`.
    past: keys and values [L, B, W, G, H] before them; W is a multiple of `BLOCK`.
    layer: int32 [1], which of the L.
    first: int32 [B, S], the first position that each query sees, nowhere before that of
      the query before; -W is the first of all.
    num_heads: N.

  Returns:
    [B, S, N, H] in the dtype of `heads`; softmax in float32.
  """
  batch, seq_len, _, head_dim = heads.shape
  num_keys, window = past[0].shape[3], past[0].shape[2]
  shared = num_heads // num_keys
  tiles, past_blocks = seq_len // BLOCK, window // BLOCK
  groups = -(-tiles // _TILES)
  items = batch * num_heads * groups
  programs = hopper.num_cores()

  def kernel(first_ref, begins_ref, layer_ref, heads_ref, *refs):
    past_refs, (output_ref, *scratch) = refs[:2], refs[2:]
    q_smem, first_smem, *kv_smem, o_smem, q_full, q_empty = scratch[:-4]
    kv_full, kv_empty = scratch[-4:-2], scratch[-2:]
    warpgroup, me = lax.axis_index("warpgroup"), lax.axis_index("program")
    count = lax.div(items + programs - 1 - me, programs)

    def place(i):
      """Row, head, first tile; the blocks that all tiles see."""
      item = me + i * programs
      tile = lax.rem(item, groups) * _TILES
      pair = lax.div(item, groups)
      row, head = lax.div(pair, num_heads), lax.rem(pair, num_heads)
      end = jnp.minimum(tile + _TILES, tiles) + past_blocks
      return row, head, tile, begins_ref[row, tile, 0], end

    @pl.when(warpgroup == _TILES)
    def _load():
      plgpu.set_max_registers(24, action="decrease")
      layer = layer_ref[0]

      def load_item(i, step):
        row, head, tile, begin, end = place(i)
        here = lax.rem(i, 2)

        @pl.when(i >= 2)
        def _():
          plgpu.barrier_wait(q_empty.at[here])

        queries = pl.ds(tile * BLOCK, _TILES * BLOCK)
        plgpu.copy_gmem_to_smem(
          heads_ref.at[row, queries, head], q_smem.at[here], q_full.at[here]
        )
        plgpu.copy_gmem_to_smem(first_ref.at[row, queries], first_smem.at[here], q_full.at[here])

        def load_block(j, step):
          slot = lax.rem(step, _STAGES)
          key_head = lax.div(head, shared)
          for part in range(2):
            own = num_heads + part * num_keys + key_head

            @pl.when(step >= _STAGES)
            def _():
              plgpu.barrier_wait(kv_empty[part].at[slot])

            @pl.when(j < past_blocks)
            def _():
              there = past_refs[part].at[layer, row, pl.ds(j * BLOCK, BLOCK), key_head]
              plgpu.copy_gmem_to_smem(there, kv_smem[part].at[slot], kv_full[part].at[slot])

            @pl.when(j >= past_blocks)
            def _():
              there = heads_ref.at[row, pl.ds((j - past_blocks) * BLOCK, BLOCK), own]
              plgpu.copy_gmem_to_smem(there, kv_smem[part].at[slot], kv_full[part].at[slot])

          return step + 1

        return lax.fori_loop(begin, end, load_block, step)

      lax.fori_loop(0, count, load_item, jnp.int32(0))

    @pl.when(warpgroup < _TILES)
    def _attend():
      plgpu.set_max_registers(160, action="increase")
      own_rows = pl.ds(warpgroup * BLOCK, BLOCK)

      def attend_item(i, step):
        row, head, tile, begin, end = place(i)
        tile += warpgroup
        exists = tile < tiles
        own_begin = jnp.where(exists, begins_ref[row, tile, 0], end)
        diagonal = jnp.where(exists, tile + past_blocks, end)
        clear = jnp.clip(begins_ref[row, tile, 1], own_begin, diagonal)
        here = lax.rem(i, 2)
        plgpu.barrier_wait(q_full.at[here])
        first = hopper.load(first_smem.at[here, own_rows], hopper.PER_ROW)
        query = hopper.load(q_smem.at[here, own_rows], hopper.LAYOUT)
        plgpu.barrier_arrive(q_empty.at[here])

        def visible(j):
          column, own = (
            plgpu.broadcasted_iota(jnp.int32, (BLOCK, BLOCK), axis, layout=hopper.LAYOUT)
            for axis in (1, 0)
          )
          column += (j - past_blocks) * BLOCK
          lowest = lax.broadcast_in_dim(first, (BLOCK, BLOCK), [0])
          return (column >= lowest) & (column <= own + tile * BLOCK)

        def skip(_, step):
          for full, empty in zip(kv_full, kv_empty, strict=True):
            plgpu.barrier_wait(full.at[lax.rem(step, _STAGES)])
            plgpu.barrier_arrive(empty.at[lax.rem(step, _STAGES)])
          return step + 1

        def add(j, carry, is_clear):
          total, largest, weight_sum, step = carry
          slot = lax.rem(step, _STAGES)
          key, value = (smem.at[slot] for smem in kv_smem)

          def products(scores):
            plgpu.wgmma(scores, query, key.T)
            return scores[...]

          plgpu.barrier_wait(kv_full[0].at[slot])
          scores = pl.run_scoped(products, plgpu.ACC((BLOCK, BLOCK), jnp.float32))
          plgpu.barrier_arrive(kv_empty[0].at[slot])
          if not is_clear:
            scores = jnp.where(visible(j), scores, _MASKED)
          new_largest = jnp.maximum(largest, scores.max(axis=1))
          rescale = jnp.exp2(largest - new_largest)
          weights = jnp.exp2(scores - lax.broadcast_in_dim(new_largest, scores.shape, [0]))
          weight_sum = weight_sum * rescale + weights.sum(axis=1)
          total *= lax.broadcast_in_dim(rescale, total.shape, [0])
          weights = weights.astype(heads.dtype)
          plgpu.barrier_wait(kv_full[1].at[slot])
          total = pl.run_state(lambda ref: plgpu.wgmma(ref, weights, value))(
            plgpu.ACC.init(total)
          )
          plgpu.barrier_arrive(kv_empty[1].at[slot])
          return total, new_largest, weight_sum, step + 1

        def per_row(value):
          return plgpu.layout_cast(jnp.full(BLOCK, value, jnp.float32), hopper.PER_ROW)

        step = lax.fori_loop(begin, own_begin, skip, step)
        total = plgpu.layout_cast(jnp.zeros((BLOCK, head_dim), jnp.float32), hopper.LAYOUT)
        carry = total, per_row(_LOWEST), per_row(0.0), step
        masked = functools.partial(add, is_clear=False)
        carry = lax.fori_loop(own_begin, clear, masked, carry)
        carry = lax.fori_loop(clear, diagonal, functools.partial(add, is_clear=True), carry)
        carry = lax.fori_loop(diagonal, jnp.minimum(diagonal + 1, end), masked, carry)
        total, _, weight_sum, step = carry
        step = lax.fori_loop(jnp.minimum(diagonal + 1, end), end, skip, step)
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        output = total * lax.broadcast_in_dim(1 / weight_sum, total.shape, [0])
        o_smem[warpgroup] = output.astype(heads.dtype)
        plgpu.commit_smem()

        @pl.when(exists)
        def _():
          there = output_ref.at[row, pl.ds(tile * BLOCK, BLOCK), head]
          plgpu.copy_smem_to_gmem(o_smem.at[warpgroup], there)

        return step

      lax.fori_loop(0, count, attend_item, jnp.int32(0))
      plgpu.wait_smem_to_gmem(0)

  def smem(*shape):
    return hopper.tiled((*shape, head_dim), heads.dtype)

  barriers = functools.partial(plgpu.Barrier, num_barriers=_STAGES)
  return plgpu.kernel(
    kernel,
    out_type=jax.ShapeDtypeStruct((batch, seq_len, num_heads, head_dim), heads.dtype),
    scratch_types=[
      smem(2, _TILES * BLOCK),
      plgpu.SMEM((2, _TILES * BLOCK), jnp.int32),
      smem(_STAGES, BLOCK),
      smem(_STAGES, BLOCK),
      smem(_TILES, BLOCK),
      plgpu.Barrier(num_arrivals=2, num_barriers=2),
      plgpu.Barrier(num_arrivals=_TILES, num_barriers=2),
      barriers(),
      barriers(),
      barriers(num_arrivals=_TILES),
      barriers(num_arrivals=_TILES),
    ],
    grid=(programs,),
    grid_names=("program",),
    num_threads=_TILES + 1,
    thread_name="warpgroup",
    compiler_params=hopper.COMPILER_PARAMS,
  )(first, _begins(first, window, groups * _TILES), layer, heads, *past)


def _begins(first, window, num_tiles):
  """Of each tile, the first block that it sees, and the first that all its queries see."""
  tiles = first.reshape(len(first), -1, BLOCK) + window
  begins = jnp.stack([tiles[..., 0] // BLOCK, -(-tiles[..., -1] // BLOCK)], axis=-1)
  return jnp.pad(begins, ((0, 0), (0, num_tiles - begins.shape[1]), (0, 0)))

