"""The gradient of a table from those of its lookups, without atomics.

Lookups come sorted by row. They are cut into chunks; a program adds up a chunk, one row
after the other, and writes the rows that begin and end in it. What a chunk has of a row
that goes on in others it keeps aside, and a second kernel adds that up from the chunk in
which the row begins. Each row is written once, whatever the skew, and two runs agree bit
for bit.

Letters: R rows of the table, D width, M gradients, n lookups.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from blt_jax.ops.triton import patch_intervals

_CHUNK = 32  # lookups of a program
_PARTIALS = 8  # chunks that the second kernel reads at once
_HEAD, _TAIL = 0, 1  # of a chunk: what belongs to a row begun before, and one that goes on


def fits(dim: int) -> bool:
  """Whether `add_rows` takes D columns."""
  return patch_intervals.fits_width(dim)


def add_rows(
  gradient: jax.Array,
  rows: jax.Array,
  sources: jax.Array,
  num_rows: int,
  dtype: Any,
  interpret: bool = False,
) -> jax.Array:
  """Adds up what each row of a table gets.

  Args:
    gradient: [M, D].
    rows: int32 [n], ascending; the row of each lookup, below R.
    sources: int32 [n], which of the M gradients it gets.
    num_rows: R.
    dtype: of the result.
    interpret: runs on any backend, slowly.

  Returns:
    [R, D]; sums in float32, rounded once.
  """
  dim, spare = gradient.shape[1], -len(rows) % _CHUNK
  rows = jnp.pad(rows, (0, spare), constant_values=num_rows)  # a row that is not there
  sources = jnp.pad(sources, (0, spare))
  num_chunks, width = len(rows) // _CHUNK, patch_intervals.width_at_once(dim)
  grid = num_chunks, dim // width

  zeros = jnp.zeros((num_rows, dim), dtype)
  total, partials = patch_intervals.call(
    functools.partial(_chunk_kernel, width=width),
    grid,
    (gradient, rows, sources, zeros),
    (((num_rows, dim), dtype), ((num_chunks, 2, dim), jnp.float32)),
    interpret,
    "table_gradient_chunks",
    width,
    aliases={3: 0},
  )
  firsts, lasts = rows[::_CHUNK], rows[_CHUNK - 1 :: _CHUNK]
  # Where the chunks end that go on with the last row of this one.
  ends = jnp.searchsorted(firsts, lasts, side="right", method="scan_unrolled")
  (total,) = patch_intervals.call(
    functools.partial(_spread_kernel, width=width),
    grid,
    (rows, ends.astype(jnp.int32), partials, total),
    (((num_rows, dim), dtype),),
    interpret,
    "table_gradient_rows",
    width,
    aliases={3: 0},
  )
  return total


def _chunk_kernel(
  gradient_ref: Any,
  row_ref: Any,
  source_ref: Any,
  zeros_ref: Any,
  total_ref: Any,
  partial_ref: Any,
  *,
  width: int,
) -> None:
  del zeros_ref  # the memory of `total_ref`
  chunk, columns = pl.program_id(0), pl.ds(pl.program_id(1) * width, width)
  begin, last = chunk * _CHUNK, row_ref.shape[0] - 1
  before = jnp.where(chunk > 0, row_ref[jnp.maximum(begin - 1, 0)], -1)

  def add(index: Any, total: jax.Array) -> jax.Array:
    place = begin + index
    row = row_ref[place]
    total += gradient_ref[source_ref[place], columns].astype(jnp.float32)
    is_last = (place == last) | (row_ref[jnp.minimum(place + 1, last)] != row)
    is_head = row == before
    is_tail = jnp.logical_not(is_last) & (index == _CHUNK - 1)
    is_whole = is_last & jnp.logical_not(is_head) & (row < total_ref.shape[0])
    _store_if(is_whole, total_ref.at[row, columns], total)
    ends_here = is_last | is_tail
    _store_if(ends_here & is_head, partial_ref.at[chunk, np.int32(_HEAD), columns], total)
    is_begin = is_tail & jnp.logical_not(is_head)
    _store_if(is_begin, partial_ref.at[chunk, np.int32(_TAIL), columns], total)
    return jnp.where(is_last, 0, total)

  jax.lax.fori_loop(0, _CHUNK, add, jnp.zeros(width, jnp.float32))


def _spread_kernel(
  row_ref: Any, end_ref: Any, partial_ref: Any, whole_ref: Any, total_ref: Any, *, width: int
) -> None:
  del whole_ref  # the memory of `total_ref`
  chunk, columns = pl.program_id(0), pl.ds(pl.program_id(1) * width, width)
  row, end = row_ref[(chunk + 1) * _CHUNK - 1], end_ref[chunk]
  before = jnp.where(chunk > 0, row_ref[jnp.maximum(chunk * _CHUNK - 1, 0)], -1)
  is_mine = (end > chunk + 1) & (row != before) & (row < total_ref.shape[0])

  @pl.when(is_mine)
  def add_up() -> None:
    def add(index: Any, total: jax.Array) -> jax.Array:
      first = chunk + 1 + index * _PARTIALS
      here = pl.ds(first, _PARTIALS)
      inside = first + jnp.arange(_PARTIALS) < end
      heads = patch_intervals.load(partial_ref.at[here, np.int32(_HEAD), columns], inside)
      return total + jnp.sum(heads, axis=0)

    turns = (end - chunk - 1 + _PARTIALS - 1) // _PARTIALS
    total = jax.lax.fori_loop(0, turns, add, partial_ref[chunk, _TAIL, columns])
    total_ref[row, columns] = total.astype(total_ref.dtype)


def _store_if(condition: jax.Array, ref: Any, values: jax.Array) -> None:
  mask = jnp.broadcast_to(condition, values.shape)
  plgpu.store(ref, values.astype(ref.dtype), mask=mask)
