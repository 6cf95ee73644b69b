"""Self-attention of intervals of positions, forward and backward, for NVIDIA GPUs.

The keys that a query sees are one interval that ends at the query's own, and the queries
that see a key are one that begins at the key's own. Neither end ever moves back along a
row, so a block of queries reads from the first of its intervals to its last query and
nothing else. A loop over blocks has three parts: only the blocks of the first and of the
last need a mask. Each gradient is summed by the one program that writes it, hence always
in the same order.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from blt_jax.ops import device
from blt_jax.ops.online_softmax import LOG2_E, MASKED

_ROOM = 160 * 1024  # bytes of fast memory that tiles of wide heads may need
_LOWEST = MASKED / 1000  # a largest score of nothing, above what is masked and scaled


class Tile(NamedTuple):
  """How the work of a kernel is cut.

  Attributes:
    queries: of a block, a power of two.
    keys: of a block, a power of two.
    num_warps: of a program.
    num_stages: blocks that are on their way while one is worked on.
  """

  queries: int
  keys: int
  num_warps: int
  num_stages: int


class Tiles(NamedTuple):
  """The tiles of the three kernels."""

  forward: Tile = Tile(64, 64, 4, 2)
  to_query: Tile = Tile(64, 64, 4, 2)
  to_key: Tile = Tile(32, 64, 4, 3)


def fits(query: jax.Array) -> bool:
  """Whether the kernels take these heads [B, S, N, H]: blocks are powers of two."""
  head_dim = query.shape[-1]
  return head_dim & (head_dim - 1) == 0 and 32 <= head_dim <= 256


def tiles_for(query: jax.Array) -> Tiles:
  """Tiles for queries [B, S, N, H], the fastest of an H200 where there is room for them."""
  head_bytes = query.shape[-1] * query.dtype.itemsize
  if head_bytes <= 128:
    return Tiles()
  if head_bytes <= 256 and device.shared_memory() >= _ROOM:
    return Tiles(Tile(64, 64, 4, 2), Tile(64, 32, 4, 2), Tile(32, 64, 4, 2))
  return Tiles(*[Tile(32, 32, 4, 1)] * 3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def interval_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  first: jax.Array,
  last: jax.Array,
  tiles: Tiles = Tiles(),  # noqa: B008
  saved_as: str = "",
  interpret: bool = False,
) -> jax.Array:
  """Softmax attention of each position to an interval that ends at its own.

  Args:
    query: [B, S, N, H]; H is a power of two, 32 at least.
    key: [B, S, G, H]; each of the G heads serves N / G adjacent query heads.
    value: [B, S, G, H].
    first: int32 [B, S], the first position that each query sees; does not fall along S.
    last: int32 [B, S], one past the last query that sees each key; neither does it.
    tiles: how the kernels are cut.
    saved_as: names the output and its softmax statistics for a remat policy, which has
      to save both lest the kernel run again.
    interpret: runs on any backend, slowly.

  Returns:
    [B, S, N, H] in the dtype of `query`; softmax in float32.
  """
  return _forward(query, key, value, first, tiles, interpret)[0]


def _save(query, key, value, first, last, tiles, saved_as, interpret):
  output, lse = _forward(query, key, value, first, tiles, interpret)
  if saved_as:
    output, lse = (checkpoint_name(x, saved_as) for x in (output, lse))
  return output, (query, key, value, first, last, output, lse)


def _forward(query, key, value, first, tiles, interpret):
  """The output, and the logarithms in base 2 of the sums of weights: float32 [B, N, S]."""
  batch, seq_len, heads, _ = query.shape
  lse = jax.ShapeDtypeStruct((batch, heads, seq_len), jnp.float32)
  return _call(
    _forward_kernel, tiles.forward, (pl.cdiv(seq_len, tiles.forward.queries), heads, batch),
    [query, lse], query, key, value, first, interpret=interpret,
  )  # fmt: skip


def _backward(tiles, saved_as, interpret, residuals, gradient):
  del saved_as
  query, key, value, first, last, output, lse = residuals
  batch, seq_len, heads, _ = query.shape
  to_query, delta = _call(
    _to_query_kernel, tiles.to_query,
    (pl.cdiv(seq_len, tiles.to_query.queries), heads, batch),
    [query, lse], query, key, value, first, output, lse, gradient, interpret=interpret,
  )  # fmt: skip
  to_key, to_value = _call(
    _to_key_kernel, tiles.to_key,
    (pl.cdiv(seq_len, tiles.to_key.keys), key.shape[2], batch),
    [key, value], query, key, value, last, lse, delta, gradient, interpret=interpret,
  )  # fmt: skip
  return to_query, to_key, to_value, None, None


interval_attention.defvjp(_save, _backward)


def _call(kernel, tile, grid, like, *arrays, interpret):
  """Runs a kernel whose programs read and write what they like of all arrays."""
  anywhere = pl.BlockSpec(memory_space=pl.ANY)
  product = functools.partial(
    jnp.dot, preferred_element_type=jnp.float32, precision=_precision(arrays[0].dtype)
  )
  return pl.pallas_call(
    functools.partial(kernel, tile=tile, product=product),
    grid=grid,
    in_specs=[anywhere] * len(arrays),
    out_specs=[anywhere] * len(like),
    out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in like],
    compiler_params=plgpu.CompilerParams(num_warps=tile.num_warps, num_stages=tile.num_stages),
    interpret=interpret,
    name=kernel.__name__.strip("_"),
  )(*arrays)


def _precision(dtype):
  """That of XLA's products, to which a kernel gives nothing by default."""
  is_open = dtype == jnp.float32 and jax.config.jax_default_matmul_precision is None  # type: ignore[attr-defined]
  return jax.lax.Precision.DEFAULT if is_open else None


# --- Kernels


def _forward_kernel(
  query_ref, key_ref, value_ref, first_ref, output_ref, lse_ref, *, tile, product
):
  work = _Queries(query_ref, key_ref, first_ref, tile)
  query = work.read(query_ref)
  scale = query.shape[-1] ** -0.5 * LOG2_E

  def add(start, visible, carry):
    total, largest, weight_sum = carry
    key, value = (work.read_keys(ref, start, visible) for ref in (key_ref, value_ref))
    scores = product(query, key.T)
    if visible is not None:
      scores = jnp.where(visible, scores, MASKED)
    highest = jnp.maximum(largest, scores.max(axis=1) * scale)
    rescale = jnp.exp2(largest - highest)
    weights = jnp.exp2(scores * scale - highest[:, None])
    total = total * rescale[:, None] + product(weights.astype(value.dtype), value)
    return total, highest, weight_sum * rescale + weights.sum(axis=1)

  carry = (
    jnp.zeros(query.shape, jnp.float32),  # sum of weighted values
    jnp.full(tile.queries, _LOWEST, jnp.float32),  # largest score
    jnp.zeros(tile.queries, jnp.float32),  # sum of weights
  )
  total, largest, weight_sum = work.over_keys(add, carry)
  work.write(output_ref, total / weight_sum[:, None])
  work.write_numbers(lse_ref, largest + jnp.log2(weight_sum))


def _to_query_kernel(
  query_ref, key_ref, value_ref, first_ref, output_ref, lse_ref, gradient_ref,
  to_query_ref, delta_ref, *, tile, product,
):  # fmt: skip
  work = _Queries(query_ref, key_ref, first_ref, tile)
  query, gradient = work.read(query_ref), work.read(gradient_ref)
  lse, scale = work.read_numbers(lse_ref), query.shape[-1] ** -0.5
  delta = (work.read(output_ref).astype(jnp.float32) * gradient.astype(jnp.float32)).sum(axis=1)
  work.write_numbers(delta_ref, delta)

  def add(start, visible, total):
    key, value = (work.read_keys(ref, start, visible) for ref in (key_ref, value_ref))
    weights = jnp.exp2(product(query, key.T) * (scale * LOG2_E) - lse[:, None])
    if visible is not None:
      weights = jnp.where(visible, weights, 0)
    to_scores = weights * (product(gradient, value.T) - delta[:, None])
    return total + product(to_scores.astype(key.dtype), key)

  total = work.over_keys(add, jnp.zeros(query.shape, jnp.float32))
  work.write(to_query_ref, total * scale)


def _to_key_kernel(
  query_ref, key_ref, value_ref, last_ref, lse_ref, delta_ref, gradient_ref,
  to_key_ref, to_value_ref, *, tile, product,
):  # fmt: skip
  block, group, row = (pl.program_id(i) for i in range(3))
  seq_len, shared = query_ref.shape[1], query_ref.shape[2] // key_ref.shape[2]
  start = block * tile.keys
  key, value = (_read(ref, row, start, group, tile.keys) for ref in (key_ref, value_ref))
  last = _read_numbers(last_ref, (row,), start, tile.keys)
  own, scale = start + jnp.arange(tile.keys), key.shape[-1] ** -0.5

  # The queries that see this block: from its own to the last of its last key.
  lowest = last_ref[row, start]
  highest = last_ref[row, jnp.minimum(start + tile.keys, seq_len) - 1]
  begin, end = start // tile.queries, pl.cdiv(highest, tile.queries)
  full = pl.cdiv(start + tile.keys - 1, tile.queries), lowest // tile.queries

  def add_head(repeat, carry):
    head = group * shared + repeat

    def add(i, carry, is_masked):
      to_key, to_value = carry
      there = i * tile.queries
      query, gradient = (
        _read(ref, row, there, head, tile.queries, is_masked)
        for ref in (query_ref, gradient_ref)
      )
      lse, delta = (
        _read_numbers(ref, (row, head), there, tile.queries, is_masked)
        for ref in (lse_ref, delta_ref)
      )
      weights = jnp.exp2(product(key, query.T) * (scale * LOG2_E) - lse[None])
      if is_masked:
        position = (there + jnp.arange(tile.queries))[None]
        visible = (position >= own[:, None]) & (position < last[:, None])
        weights = jnp.where(visible, weights, 0)
      to_value += product(weights.astype(gradient.dtype), gradient)
      to_scores = weights * (product(value, gradient.T) - delta[None])
      return to_key + product(to_scores.astype(query.dtype), query), to_value

    return _in_three(begin, *full, end, add, carry)

  carry = (jnp.zeros(key.shape, jnp.float32),) * 2
  to_key, to_value = (
    add_head(0, carry) if shared == 1 else jax.lax.fori_loop(0, shared, add_head, carry)
  )
  _write(to_key_ref, row, start, group, to_key * scale)
  _write(to_value_ref, row, start, group, to_value)


class _Queries:
  """What a program does that owns a block of queries of one head."""

  def __init__(self, query_ref: Any, key_ref: Any, first_ref: Any, tile: Tile):
    block, self.head, self.row = (pl.program_id(i) for i in range(3))
    self.group = self.head // (query_ref.shape[2] // key_ref.shape[2])
    self.start, self.tile, self.seq_len = block * tile.queries, tile, query_ref.shape[1]
    self.first = _read_numbers(first_ref, (self.row,), self.start, tile.queries)
    self.last_query = jnp.minimum(self.start + tile.queries, self.seq_len) - 1
    # Between their first and last, intervals only move on.
    self.lowest = first_ref[self.row, self.start]
    self.highest = first_ref[self.row, self.last_query]

  def read(self, ref: Any) -> jax.Array:
    """The block's own [queries, H] of an array."""
    return _read(ref, self.row, self.start, self.head, self.tile.queries)

  def read_numbers(self, ref: Any) -> jax.Array:
    """The block's own [queries] of an array [B, N, S]."""
    return _read_numbers(ref, (self.row, self.head), self.start, self.tile.queries)

  def read_keys(self, ref: Any, start: jax.Array, visible: jax.Array | None) -> jax.Array:
    """A block of keys or values [keys, H]."""
    is_masked = visible is not None
    return _read(ref, self.row, start, self.group, self.tile.keys, is_masked)

  def write(self, ref: Any, values: jax.Array) -> None:
    """Writes the block's own [queries, H]."""
    _write(ref, self.row, self.start, self.head, values)

  def write_numbers(self, ref: Any, values: jax.Array) -> None:
    """Writes the block's own [queries] of an array [B, N, S]."""
    at = ref.at[self.row, self.head, pl.ds(self.start, len(values))]
    plgpu.store(at, values, mask=_inside(self.seq_len, self.start, len(values)))

  def over_keys(self, add: Callable[..., Any], carry: Any) -> Any:
    """Folds `add(start, what is visible or None for all, carry)` over blocks of keys."""
    size = self.tile.keys
    own = self.start + jnp.arange(self.tile.queries)

    def step(j, carry, is_masked):
      visible = None
      if is_masked:
        position = (j * size + jnp.arange(size))[None]
        visible = (position >= self.first[:, None]) & (position <= own[:, None])
      return add(j * size, visible, carry)

    return _in_three(
      self.lowest // size, pl.cdiv(self.highest, size), (self.start + 1) // size,
      self.last_query // size + 1, step, carry,
    )  # fmt: skip


def _in_three(begin, full_begin, full_end, end, step, carry):
  """A loop whose middle part, if there is one, needs no masks."""
  full_begin = jnp.clip(full_begin, begin, end)
  full_end = jnp.clip(full_end, full_begin, end)
  masked = functools.partial(step, is_masked=True)
  carry = jax.lax.fori_loop(begin, full_begin, masked, carry)
  carry = jax.lax.fori_loop(
    full_begin, full_end, functools.partial(step, is_masked=False), carry
  )
  return jax.lax.fori_loop(full_end, end, masked, carry)


# --- Blocks of positions, of which the last may reach past the end of its row


def _inside(seq_len, start, size):
  """Which positions of a block exist: bool [size], or None for all."""
  return None if seq_len % size == 0 else start + jnp.arange(size) < seq_len


def _read(ref, row, start, head, size, may_end=True):
  """Positions [size, H] of a head of [B, S, N, H], zeros past the end."""
  at = ref.at[row, pl.ds(start, size), head, :]
  inside = _inside(ref.shape[1], start, size) if may_end else None
  if inside is None:
    return at[...]
  mask = jnp.broadcast_to(inside[:, None], (size, ref.shape[3]))
  return plgpu.load(at, mask=mask, other=0)


def _read_numbers(ref, lead, start, size, may_end=True):
  """Positions [size] of [..., S], zeros past the end."""
  at = ref.at[(*lead, pl.ds(start, size))]
  inside = _inside(ref.shape[-1], start, size) if may_end else None
  return at[...] if inside is None else plgpu.load(at, mask=inside, other=0)


def _write(ref, row, start, head, values):
  """Writes positions [size, H] of a head."""
  size, head_dim = values.shape
  inside = _inside(ref.shape[1], start, size)
  if inside is not None:
    inside = jnp.broadcast_to(inside[:, None], (size, head_dim))
  at = ref.at[row, pl.ds(start, size), head, :]
  plgpu.store(at, values.astype(ref.dtype), mask=inside)
