"""A layer's attention to a ring of positions on an NVIDIA GPU, for a few new ones.

It begins with the projected heads and ends with the output matrix: rotation and cache
are part of it. With few heads at hand, each is divided into parts of its ring, which the
output matrix's kernel puts together.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from blt_jax.ops import online_softmax
from blt_jax.ops.online_softmax import LOG2_E, MASKED
from blt_jax.ops.triton import matvec as gpu_matvec
from blt_jax.ops.triton.call import call, fits_head, retain, start_loads

BLOCK = 64  # slots of a ring that are read at once
_MAX_QUERIES = 8  # of one key head, kept in registers
_PART = 128  # slots at least of a part of a ring
_PROGRAMS = 128  # about as many as there are multiprocessors


def fits_attend(
  heads: jax.Array, num_heads: int, key_ring: jax.Array, window: int | None
) -> bool:
  """Whether `attend_add` takes heads [B, C, N + 2 G, H] and a ring of keys [B, R, G, H]."""
  length, size, key_heads, head_dim = heads.shape[1], *key_ring.shape[1:]
  queries = length * (num_heads // key_heads)
  has_room = window is None or size >= window + length - 1
  return queries <= _MAX_QUERIES and fits_head(head_dim) and has_room and size % BLOCK == 0


def attend_add(
  heads: jax.Array,
  angles: tuple[jax.Array, jax.Array],
  key_ring: jax.Array,
  value_ring: jax.Array,
  position: jax.Array,
  count: jax.Array,
  first: jax.Array,
  matrix: jax.Array,
  residual: jax.Array,
  *,
  window: int | None,
  interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Rotates queries and keys, appends to the rings, attends, and adds to the residual.

  Args:
    heads: [B, C, N + 2 G, H], queries, keys and values of the new positions.
    angles: cosines and sines, float32 [B, C, 1, H / 2].
    key_ring: [B, R, G, H].
    value_ring: [B, R, G, H].
    position: int32 [B]; see `ring_attention` for this and the rest.
    count: int32 [B].
    first: int32 [B, C].
    matrix: [D, N H].
    residual: [B, C, D].
    window: positions visible, or None for all.
    interpret: run as plain jax, for tests.

  Returns:
    [B, C, D] in the dtype of `residual`; and the rings.
  """
  batch, length, _, head_dim = heads.shape
  size, key_heads = key_ring.shape[1:3]
  number, flat = batch * length, residual.reshape(batch * length, -1)
  num_heads = heads.shape[2] - 2 * key_heads
  parts = 1
  if gpu_matvec.fits_heads(number, num_heads, head_dim, flat.shape[1]):
    parts = _num_parts(size, batch * key_heads)
  arguments = (heads, *angles, position, count, first, key_ring, value_ring)
  keys, values, *mixed = _attend(arguments, window, parts, interpret)
  if parts > 1:
    states = [x.reshape(parts, number, *x.shape[3:]) for x in mixed]
    out = gpu_matvec.heads_matvec(_merge, states, matrix, flat, head_dim, 1.0, interpret)
    return out.reshape(residual.shape), keys, values
  x = mixed[0].reshape(number, -1)
  if gpu_matvec.fits_matvec(x, len(matrix)):
    out = gpu_matvec.matvec(x, matrix, residual=flat, interpret=interpret)
  else:
    out = retain(flat + jnp.dot(x, matrix.T))
  return out.reshape(residual.shape), keys, values


def _num_parts(size, num_heads):
  """Parts of a ring, of whole blocks, for so many heads of all rows."""
  most = max(1, min(size // _PART, _PROGRAMS // num_heads))
  return next(parts for parts in range(most, 0, -1) if size % (parts * BLOCK) == 0)


def _attend(arguments, window, parts, interpret):
  """Rings; and mixed heads [B, C, N, H], or running softmaxes [parts, B, C, N(, H)]."""
  heads, key_ring, value_ring = arguments[0], arguments[-2], arguments[-1]
  batch, length, width, head_dim = heads.shape
  _, size, key_heads, _ = key_ring.shape
  shape = (batch, length, width - 2 * key_heads)
  mixed = [jax.ShapeDtypeStruct((*shape, head_dim), heads.dtype)]
  block = BLOCK
  if parts > 1:
    numbers = jax.ShapeDtypeStruct((parts, *shape), jnp.float32)
    mixed = [numbers, numbers, jax.ShapeDtypeStruct((*numbers.shape, head_dim), jnp.float32)]
    block = _PART if head_dim <= 64 and size % (parts * _PART) == 0 else BLOCK
  kernel = functools.partial(
    _attend_kernel, shape=key_ring.shape[1:], window=window, block=block, parts=parts,
    interpret=interpret,
  )  # fmt: skip
  rings = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (key_ring, value_ring)]
  grid = (key_heads, batch, parts)  # heads of a row lie side by side in its ring
  aliases = {len(arguments) - 2: 0, len(arguments) - 1: 1}
  return call(
    kernel, rings + mixed, *arguments, grid=grid, aliases=aliases, interpret=interpret
  )


def _attend_kernel(
  heads_ref, cos_ref, sin_ref, position_ref, count_ref, first_ref, _keys, _values,
  key_ref, value_ref, *out_refs, shape, window, block, parts, interpret,
):  # fmt: skip
  size, key_heads, head_dim = shape
  _, length, width, _ = heads_ref.shape
  num_heads = width - 2 * key_heads
  group, row, part = (pl.program_id(i) for i in range(3))
  position, count = position_ref[row], count_ref[row]
  repeats, steps = num_heads // key_heads, range(length)
  rotated = functools.partial(_rotated, heads_ref, cos_ref, sin_ref, row, jnp.arange(head_dim))

  def oldest(step):
    seen = first_ref[row, step]
    return seen if window is None else jnp.maximum(seen, position + step - window + 1)

  queries = [
    (step, repeat, rotated(step, group * repeats + repeat) * (head_dim**-0.5 * LOG2_E))
    for step in steps
    for repeat in range(repeats)
  ]
  keys = [rotated(step, num_heads + group) for step in steps]
  values = [
    heads_ref[row, step, num_heads + key_heads + group, :].astype(jnp.float32) for step in steps
  ]

  def read(index, states):
    here = pl.ds(index * block, block)
    loaded = [ref[row, here, group, :] for ref in (key_ref, value_ref)]
    start_loads(interpret)
    key, value = (x.astype(jnp.float32) for x in loaded)
    seen = _positions_in_block(position, index, block, size)
    updated = []
    for (step, _, query), state in zip(queries, states, strict=True):
      scores = jnp.where(seen >= oldest(step), (key * query[None]).sum(axis=1), MASKED)
      updated.append(online_softmax.add_row(state, scores, value))
    return tuple(updated)

  states = (online_softmax.nothing((), head_dim),) * len(queries)
  share = size // block // parts
  if share == 1:  # then it is read before it is known what of it counts
    states = read(part, states)
  else:
    begin = 0 if window is not None else first_ref[row, 0] // block
    end = jnp.where(count > 0, (jnp.minimum(position, size) + block - 1) // block, 0)
    begin, end = jnp.maximum(begin, part * share), jnp.minimum(end, (part + 1) * share)
    states = jax.lax.fori_loop(begin, end, read, states)
  is_first = part == 0  # which looks at the new positions
  for (step, repeat, query), state in zip(queries, states, strict=True):
    for other in range(step + 1):
      is_seen = is_first & (position + other >= oldest(step))
      score = jnp.where(is_seen, jnp.sum(keys[other] * query), MASKED)
      state = online_softmax.add_one(state, score, values[other])
    _store(out_refs, state, (row, step, group * repeats + repeat), part)
  for step in steps:
    slot = jax.lax.rem(position + step, size)

    @pl.when(is_first & (step < count))
    def _(step=step, slot=slot):
      key_ref[row, slot, group, :] = keys[step].astype(key_ref.dtype)
      value_ref[row, slot, group, :] = values[step].astype(value_ref.dtype)


def _store(out_refs, state, at, part):
  if len(out_refs) == 1:
    _, total, mixed = state
    out_refs[0][(*at, slice(None))] = (mixed / total).astype(out_refs[0].dtype)
    return
  for ref, values in zip(out_refs, state, strict=True):
    ref[(part, *at, *[slice(None)] * values.ndim)] = values


def _merge(i, heads, largest_ref, total_ref, mixed_ref):
  """Of `heads_matvec`: heads of vector i, [h, H], from the softmaxes of all parts."""
  refs, parts = (largest_ref, total_ref), range(len(mixed_ref))
  states = [(*(r[p, i, heads] for r in refs), mixed_ref[p, i, heads, :]) for p in parts]

  def merge():
    _, total, mixed = online_softmax.merge(states)
    return mixed / total[:, None]

  return merge


def _rotated(heads_ref, cos_ref, sin_ref, row, at, step, head):
  """A head of a new position, float32, its elements at 0 to H - 1 rotated."""
  head_dim, half = len(at), len(at) // 2
  cos, sin = (ref[row, step, 0, at % half] for ref in (cos_ref, sin_ref))
  own = heads_ref[row, step, head, at].astype(jnp.float32)
  other = heads_ref[row, step, head, (at + half) % head_dim].astype(jnp.float32)
  turned = own * cos + jnp.where(at < half, -other, other) * sin
  # Rounded as keys are where they are stored.
  return turned.astype(heads_ref.dtype).astype(jnp.float32)


def _positions_in_block(end, index, block, size):
  """The newest position below `end` that each slot [block] of a ring may hold, some < 0."""
  newest = jax.lax.rem(end - 1 + size, size)  # slot
  age = newest - index * block - jnp.arange(block)
  return end - 1 - jnp.where(age < 0, age + size, age)
