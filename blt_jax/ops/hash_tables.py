"""Sums of rows of a table that may be too large for one device, with its gradient.

Over several devices the table is split by rows and lookups are routed: each device drops
repeats, asks the owners of the rows that are left, and adds up what they send. Nothing of
the size of the table is ever sent, and a device's work and traffic follow its own lookups,
not the number of devices. Every device exchanges `capacity` rows with every other at a
time; a skewed batch takes more rounds, so that results are exact whatever is asked.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from blt_jax.ops import device
from blt_jax.ops.triton import table_gradient

Axes = tuple[str, ...]  # mesh axes that rows are split over, outermost first


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def lookup_sum(table: jax.Array, rows: jax.Array, dtype: str, axes: Axes = ()) -> jax.Array:
  """Adds up one row of the table per lookup.

  With `axes` this runs inside `jax.shard_map`: `table` and `rows` are a device's own, all
  devices along the axes call it together, and rows are numbered through all their tables.
  The gradient of the table is its own share too.

  Args:
    table: [R, D].
    rows: int32 [T, B, S], numbers of rows, T for each byte.
    dtype: of rows as they are looked up and, over several devices, of the gradients that
      are sent; sums are in float32.
    axes: mesh axes that the rows of the table are split over, evenly and in order.

  Returns:
    float32 [B, S, D].
  """
  if axes:
    flat = _routed_sum(table, rows.reshape(len(rows), -1), dtype, axes)
    return flat.reshape(*rows.shape[1:], -1)
  return sum(_cast(table[numbers], dtype) for numbers in rows)


def _forward(table, rows, dtype, axes):
  return lookup_sum(table, rows, dtype, axes), (table[:, :0], rows)


def _backward(dtype, axes, residuals, gradient):
  like, rows = residuals  # like: [R, 0], what remains to be known of the table
  gradient = gradient.reshape(-1, gradient.shape[-1])
  rows = rows.reshape(len(rows), -1)
  scatter = functools.partial(_routed_scatter, dtype=dtype, axes=axes) if axes else _scatter
  return scatter(like, rows, gradient), None


lookup_sum.defvjp(_forward, _backward)


def _cast(x, dtype):
  """Float32 values of what `dtype` keeps of x."""
  return x.astype(dtype).astype(jnp.float32)


# --- Repeats


class _Distinct(NamedTuple):
  """The distinct ones among n numbers.

  Attributes:
    values: [n], ascending; the rest is filled up with numbers from `bound` on.
    order: [n], positions of the numbers when sorted.
    rank: [n], where in `values` each sorted number is.
  """

  values: jax.Array
  order: jax.Array
  rank: jax.Array


def _distinct(numbers: jax.Array, bound: int) -> _Distinct:
  """Finds the distinct ones among numbers [n] below `bound`."""
  places = jnp.arange(len(numbers))
  ordered, order = jax.lax.sort((numbers, places), num_keys=1)
  is_first = jnp.append(True, ordered[1:] != ordered[:-1])
  rank = jnp.cumsum(is_first) - 1
  values = (
    (bound + places)
    .at[jnp.where(is_first, rank, len(numbers))]
    .set(ordered, mode="drop", unique_indices=True)
  )
  return _Distinct(values, order, rank)


def _sum_repeats(distinct: _Distinct, gradient: jax.Array) -> jax.Array:
  """Adds up what each distinct number gets of the gradient [M, D] of its bytes: [n, D]."""
  by_number = gradient[distinct.order % len(gradient)]
  return jax.ops.segment_sum(
    by_number, distinct.rank, num_segments=len(by_number), indices_are_sorted=True
  )


# --- One device


def _scatter(like: jax.Array, rows: jax.Array, gradient: jax.Array) -> jax.Array:
  """The gradient of the table [R, D] from that of the bytes [M, D]; rows [T, M]."""
  if device.kernels() == "triton" and table_gradient.fits(gradient.shape[-1]):
    return _scatter_on_gpu(like, rows.reshape(-1), gradient)
  total = jnp.zeros((len(like), gradient.shape[-1]), like.dtype)
  if like.dtype == jnp.float32:
    for numbers in rows:
      total = total.at[numbers].add(gradient)
    return total
  # Repeats must not be rounded one by one, and adding bfloat16 is slow on GPUs.
  distinct = _distinct(rows.reshape(-1), len(like))
  sums = _sum_repeats(distinct, gradient).astype(like.dtype)
  return total.at[distinct.values].set(
    sums, mode="drop", unique_indices=True, indices_are_sorted=True
  )


def _scatter_on_gpu(like: jax.Array, numbers: jax.Array, gradient: jax.Array) -> jax.Array:
  """`_scatter` of lookups [n]; always in the same order, unlike XLA's own there."""
  places = jnp.arange(len(numbers))
  ordered, order = jax.lax.sort((numbers, places), num_keys=1)
  sources = order % len(gradient)
  return table_gradient.add_rows(gradient, ordered, sources, len(like), like.dtype)


# --- Many devices


class _Route(NamedTuple):
  """Who is asked for what.

  Attributes:
    distinct: the distinct ones of the device's lookups.
    starts: [N], where the rows of each of the N owners begin in `distinct.values`.
    counts: [N], how many they are.
    num_rounds: [], the same on all devices.
  """

  distinct: _Distinct
  starts: jax.Array
  counts: jax.Array
  num_rounds: jax.Array


def _route(rows: jax.Array, num_rows: int, axes: Axes) -> tuple[_Route, int]:
  """Plans the lookups [n] in a table of which each device has `num_rows`.

  Returns:
    The plan and the capacity: rows that a device asks of another in one round.
  """
  owners = jax.lax.axis_size(axes)
  # Hashes spread evenly: 4/3 of the mean is 9 standard deviations off for a mean of 768.
  capacity = 8 * math.ceil(len(rows) / owners / 6)
  distinct = _distinct(rows, owners * num_rows)
  bounds = jnp.searchsorted(distinct.values, num_rows * jnp.arange(owners + 1))
  counts = bounds[1:] - bounds[:-1]
  num_rounds = jax.lax.pmax(-(-counts.max() // capacity), axes)
  return _Route(distinct, bounds[:-1], counts, num_rounds), capacity


def _requests(
  route: _Route, turn: jax.Array, capacity: int, num_rows: int
) -> tuple[jax.Array, jax.Array]:
  """What a device asks for in one round.

  Returns:
    positions in `distinct.values` [N * capacity] and the owners' own row numbers for
    them; out of range where nothing is asked.
  """
  within = (turn * capacity + jnp.arange(capacity))[None]
  is_asked = within < route.counts[:, None]
  positions = route.starts[:, None] + within
  first_rows = num_rows * jnp.arange(len(route.starts))[:, None]
  values = route.distinct.values.at[positions].get(mode="clip") - first_rows
  nothing = len(route.distinct.values)
  return (
    jnp.where(is_asked, positions, nothing).reshape(-1),
    jnp.where(is_asked, values, num_rows).reshape(-1),
  )


def _exchange(x: jax.Array, axes: Axes) -> jax.Array:
  """Sends the i-th of N parts of an array to the i-th device and gets theirs."""
  return jax.lax.all_to_all(x, axes, split_axis=0, concat_axis=0, tiled=True)


def _rounds(
  route: _Route, body: Callable[[jax.Array, jax.Array], jax.Array], initial: jax.Array
) -> jax.Array:
  """Runs `body(turn, value)` for all rounds; devices take the same number of them."""

  def step(carry):
    turn, value = carry
    return turn + 1, body(turn, value)

  carry = jnp.int32(0), initial
  return jax.lax.while_loop(lambda carry: carry[0] < route.num_rounds, step, carry)[1]


def _routed_sum(table: jax.Array, rows: jax.Array, dtype: str, axes: Axes) -> jax.Array:
  """`lookup_sum` of rows [T, M]: [M, D]."""
  num_rows, dim = table.shape
  route, capacity = _route(rows.reshape(-1), num_rows, axes)
  rank = (
    jnp.zeros_like(route.distinct.rank)
    .at[route.distinct.order]
    .set(route.distinct.rank, unique_indices=True)
  )
  owner = rows // num_rows
  place = rank.reshape(rows.shape) - route.starts[owner]  # among what its owner is asked

  def add_round(turn, total):
    _, asked = _requests(route, turn, capacity, num_rows)
    found = table.at[_exchange(asked, axes)].get(mode="clip").astype(dtype)
    answers = _exchange(found, axes)
    slots = jnp.where(
      place // capacity == turn, owner * capacity + place % capacity, len(asked)
    )
    for slot in slots:
      total += answers.at[slot].get(mode="fill", fill_value=0).astype(jnp.float32)
    return total

  return _rounds(route, add_round, jnp.zeros((rows.shape[1], dim), jnp.float32))


def _routed_scatter(
  like: jax.Array, rows: jax.Array, gradient: jax.Array, dtype: str, axes: Axes
) -> jax.Array:
  """The gradient of a device's part of the table from those of all devices' bytes."""
  route, capacity = _route(rows.reshape(-1), len(like), axes)
  sums = _sum_repeats(route.distinct, gradient).astype(dtype)

  def add_round(turn, total):
    positions, asked = _requests(route, turn, capacity, len(like))
    sent = sums.at[positions].get(mode="fill", fill_value=0)
    received = _exchange(sent, axes).astype(jnp.float32)
    return total.at[_exchange(asked, axes)].add(received, mode="drop")

  total = jnp.zeros((len(like), gradient.shape[-1]), jnp.float32)
  return _rounds(route, add_round, total).astype(like.dtype)
