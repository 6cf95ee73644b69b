"""Pallas kernels for decoding a few bytes on a GPU, where small kernels take all the time.

`matvec` is a matrix times a few vectors with the norm before it and what follows it;
`attend` is a layer's attention from its projections to its mixed heads, rotation and
cache included; `attend_patches` is that of bytes to patches. What they compute is that of
`ops.norm`, `ops.ring_attention` and `ops.masked_attention`.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

MAX_VECTORS = 8  # more are better served by a matrix product
_MAX_QUERIES = 8  # of one key head, kept in registers
_TILE = 4  # results of a program
BLOCK = 64  # slots of a ring that are read at once, or a multiple
_MASKED = -1e30
_LOG2_E = math.log2(math.e)  # softmax is in powers of two


def _call(kernel, grid, out_shape, num_inputs, interpret, num_warps=4, **options):
  if not interpret:
    from jax.experimental.pallas import triton

    options["compiler_params"] = triton.CompilerParams(num_warps=num_warps, num_stages=1)
  anywhere = pl.BlockSpec(memory_space=pl.ANY)
  return pl.pallas_call(
    kernel,
    grid=grid,
    in_specs=[anywhere] * num_inputs,
    out_specs=jax.tree.map(lambda _: anywhere, out_shape),
    out_shape=out_shape,
    interpret=interpret,
    **options,
  )


def fits_matvec(x: jax.Array, size: int) -> bool:
  """Whether `matvec` takes x [n, in] and gives [n, size]."""
  return len(x) <= MAX_VECTORS and x.shape[1] % 256 == 0 and size % _TILE == 0


def matvec(
  x: jax.Array,
  matrix: jax.Array,
  *,
  scale: jax.Array | None = None,
  epsilon: float = 0.0,
  is_gated: bool = False,
  residual: jax.Array | None = None,
  factor: float = 1.0,
  interpret: bool = False,
) -> jax.Array:
  """Multiplies a few vectors by a matrix.

  Args:
    x: [n, in].
    matrix: [out, in], or [2 out, in] with `is_gated`.
    scale: float32 [in]; x is first normalised as `norm.rms_norm` does.
    epsilon: of the norm.
    is_gated: silu of the first half of the result times the second half.
    residual: [n, out], of which `factor` times is added to the result.
    factor: see `residual`.
    interpret: run as plain jax, for tests.

  Returns:
    [n, out] in the dtype of `x`; sums in float32.
  """
  number, width = x.shape
  size = len(matrix) // (2 if is_gated else 1)
  chunk = next(c for c in (1024, 512, 256) if width % c == 0)
  inputs = [x, matrix] + [a for a in (scale, residual) if a is not None]
  kernel = functools.partial(
    _matvec_kernel, width=width, chunk=chunk, size=size, epsilon=epsilon,
    has_norm=scale is not None, is_gated=is_gated, factor=factor, number=number,
    has_residual=residual is not None,
  )  # fmt: skip
  out_shape = jax.ShapeDtypeStruct((number, size), x.dtype)
  return _call(kernel, (size // _TILE,), out_shape, len(inputs), interpret)(*inputs)


def _matvec_kernel(
  x_ref, matrix_ref, *refs, width, chunk, size, epsilon, has_norm, is_gated,
  has_residual, factor, number,
):  # fmt: skip
  out_ref, first = refs[-1], pl.program_id(0) * _TILE
  columns = [pl.ds(c, chunk) for c in range(0, width, chunk)]
  rows = [pl.ds(first, _TILE)] + ([pl.ds(size + first, _TILE)] if is_gated else [])
  # All loads of the matrix come first, so that they are under way together.
  matrix = [[matrix_ref[r, c].astype(jnp.float32) for c in columns] for r in rows]
  for i in range(number):
    vectors = [x_ref[i, c].astype(jnp.float32) for c in columns]
    inverse = jnp.float32(1)
    if has_norm:
      total = sum(jnp.sum(v * v) for v in vectors)
      inverse = jax.lax.rsqrt(total / width + epsilon)
      vectors = [v * refs[0][c] for v, c in zip(vectors, columns, strict=True)]
    sums = [sum((m * v).sum(1) for m, v in zip(ms, vectors, strict=True)) for ms in matrix]
    result = sums[0] * inverse
    if is_gated:
      result = result * jax.nn.sigmoid(result) * (sums[1] * inverse)
    if has_residual:
      residual = refs[-2][i, pl.ds(first, _TILE)].astype(jnp.float32)
      result = result + factor * residual
    out_ref[i, pl.ds(first, _TILE)] = result.astype(out_ref.dtype)


def fits_attend(
  heads: jax.Array, num_heads: int, key_ring: jax.Array, window: int | None
) -> bool:
  """Whether `attend` takes these arguments."""
  length, size, key_heads, head_dim = heads.shape[1], *key_ring.shape[1:]
  queries = length * (num_heads // key_heads)
  is_power = head_dim & (head_dim - 1) == 0 and head_dim >= 32
  has_room = window is None or size >= window + length - 1
  return queries <= _MAX_QUERIES and is_power and has_room and size % BLOCK == 0


def attend(
  heads: jax.Array,
  angles: tuple[jax.Array, jax.Array],
  key_ring: jax.Array,
  value_ring: jax.Array,
  position: jax.Array,
  count: jax.Array,
  first: jax.Array,
  *,
  num_heads: int,
  window: int | None,
  interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Rotates queries and keys, appends keys and values to their rings, and attends.

  Args:
    heads: [B, C, N + 2 G, H], queries, keys and values of the new positions.
    angles: cosines and sines, float32 [B, C, 1, H / 2].
    key_ring: [B, R, G, H].
    value_ring: [B, R, G, H].
    position: int32 [B]; see `ring_attention` for this and the rest.
    count: int32 [B].
    first: int32 [B, C].
    num_heads: N.
    window: positions visible, or None for all.
    interpret: run as plain jax, for tests.

  Returns:
    [B, C, N, H] in the dtype of `heads`; and the rings.
  """
  batch, length, _, head_dim = heads.shape
  key_heads = key_ring.shape[2]
  # With few programs on the chip, each must have more loads under way: of the whole ring,
  # where the registers hold it.
  size = key_ring.shape[1]
  is_alone = batch * key_heads <= 64
  is_small = length * num_heads == key_heads and size <= 512 and head_dim <= 64
  block = size if is_alone and is_small and size & (size - 1) == 0 else BLOCK
  kernel = functools.partial(
    _attend_kernel, length=length, num_heads=num_heads, shape=key_ring.shape[1:],
    window=window, block=block,
  )  # fmt: skip
  outputs = (
    jax.ShapeDtypeStruct((batch, length, num_heads, head_dim), heads.dtype),
    jax.ShapeDtypeStruct(key_ring.shape, key_ring.dtype),
    jax.ShapeDtypeStruct(value_ring.shape, value_ring.dtype),
  )
  call = _call(
    kernel,
    (key_heads, batch),  # heads of a row lie side by side in its ring
    outputs,
    8,
    interpret,
    num_warps=8 if is_alone else 4,
    input_output_aliases={6: 1, 7: 2},
  )
  return call(heads, *angles, position, count, first, key_ring, value_ring)


def _attend_kernel(
  heads_ref, cos_ref, sin_ref, position_ref, count_ref, first_ref, _keys, _values,
  out_ref, key_ref, value_ref, *, length, num_heads, shape, window, block,
):  # fmt: skip
  size, key_heads, head_dim = shape
  group, row = pl.program_id(0), pl.program_id(1)
  position, count = position_ref[row], count_ref[row]
  repeats, steps = num_heads // key_heads, range(length)
  rotated = functools.partial(_rotated, heads_ref, cos_ref, sin_ref, row, jnp.arange(head_dim))

  def oldest(step):
    seen = first_ref[row, step]
    return seen if window is None else jnp.maximum(seen, position + step - window + 1)

  queries = [
    (step, repeat, rotated(step, group * repeats + repeat) * (head_dim**-0.5 * _LOG2_E))
    for step in steps
    for repeat in range(repeats)
  ]
  keys = [rotated(step, num_heads + group) for step in steps]
  values = [
    heads_ref[row, step, num_heads + key_heads + group, :].astype(jnp.float32) for step in steps
  ]

  def read(index, states):
    here = pl.ds(index * block, block)
    key, value = (ref[row, here, group, :].astype(jnp.float32) for ref in (key_ref, value_ref))
    seen = _positions_in_block(position, index, block, size)
    updated = []
    for (step, _, query), state in zip(queries, states, strict=True):
      scores = jnp.where(seen >= oldest(step), (key * query[None]).sum(axis=1), _MASKED)
      updated.append(_add(state, scores, value))
    return tuple(updated)

  begin = 0 if window is not None else first_ref[row, 0] // block
  end = jnp.where(count > 0, (jnp.minimum(position, size) + block - 1) // block, 0)
  states = jax.lax.fori_loop(begin, end, read, (_nothing(head_dim),) * len(queries))
  for (step, repeat, query), state in zip(queries, states, strict=True):
    for other in range(step + 1):
      is_seen = position + other >= oldest(step)
      score = jnp.where(is_seen, jnp.sum(keys[other] * query), _MASKED)
      state = _add_one(state, score, values[other])
    _, total, mixed = state
    head = group * repeats + repeat
    out_ref[row, step, head, :] = (mixed / total).astype(out_ref.dtype)
  for step in steps:
    slot = jax.lax.rem(position + step, size)

    @pl.when(step < count)
    def _(step=step, slot=slot):
      key_ref[row, slot, group, :] = keys[step].astype(key_ref.dtype)
      value_ref[row, slot, group, :] = values[step].astype(value_ref.dtype)


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


def fits_attend_patches(patches: jax.Array) -> bool:
  """Whether `attend_patches` takes patches [B, M, S, 2, G, H]."""
  slots, head_dim = patches.shape[2], patches.shape[-1]
  return slots & (slots - 1) == 0 and head_dim & (head_dim - 1) == 0 and head_dim >= 32


def attend_patches(
  query: jax.Array,
  patches: jax.Array,
  ids: jax.Array,
  *,
  window: int,
  interpret: bool = False,
) -> jax.Array:
  """Attention of each byte to the vectors of its newest patches.

  Args:
    query: [B, C, 1, G, R, H].
    patches: [B, M, S, 2, G, H] keys and values of the vectors of each patch.
    ids: int32 [B, C], the newest patch that each byte reads, 0 or more.
    window: how many patches it reads.
    interpret: run as plain jax, for tests.

  Returns:
    [B, C, 1, G, R, H] in the dtype of `query`.
  """
  batch, length, _, key_heads, repeats, _ = query.shape
  kernel = functools.partial(
    _attend_patches_kernel, repeats=repeats, window=window, slots=patches.shape[2]
  )
  outputs = jax.ShapeDtypeStruct(query.shape, query.dtype)
  call = _call(kernel, (batch, length, key_heads), outputs, 3, interpret)
  return call(query, patches, ids)


def _attend_patches_kernel(
  query_ref, patch_ref, id_ref, out_ref, *, repeats, window, slots
):  # fmt: skip
  row, step, group = (pl.program_id(i) for i in range(3))
  newest = jnp.minimum(id_ref[row, step], patch_ref.shape[1] - 1)
  head_dim = query_ref.shape[-1]
  for repeat in range(repeats):
    query = (
      query_ref[row, step, 0, group, repeat, :].astype(jnp.float32) * head_dim**-0.5 * _LOG2_E
    )
    state = _nothing(head_dim)
    for back in range(window):
      patch = jnp.maximum(newest - back, 0)
      key, value = (
        patch_ref[row, patch, :, which, group, :].astype(jnp.float32) for which in (0, 1)
      )
      scores = (key * query[None]).sum(axis=1)
      is_there = jnp.broadcast_to(newest - back >= 0, (slots,))
      state = _add(state, jnp.where(is_there, scores, _MASKED), value)
    out_ref[row, step, 0, group, repeat, :] = (state[2] / state[1]).astype(out_ref.dtype)


def _add(state: Any, scores: jax.Array, value: jax.Array) -> Any:
  """Takes scores [block] and values [block, H] into a running softmax."""
  largest, total, mixed = state
  highest = jnp.maximum(largest, jnp.max(scores))
  scale = jnp.exp2(largest - highest)
  weights = jnp.where(scores > _MASKED, jnp.exp2(scores - highest), 0)
  return (
    highest,
    total * scale + jnp.sum(weights),
    mixed * scale + jnp.sum(weights[:, None] * value, axis=0),
  )


def _nothing(head_dim: int) -> Any:
  """A softmax that has seen nothing."""
  return jnp.float32(_MASKED), jnp.float32(0), jnp.zeros(head_dim, jnp.float32)


def _add_one(state: Any, score: jax.Array, value: jax.Array) -> Any:
  """Likewise for a single position."""
  largest, total, mixed = state
  highest = jnp.maximum(largest, score)
  scale, weight = jnp.exp2(largest - highest), jnp.exp2(score - highest)
  weight = jnp.where(score > _MASKED, weight, 0)
  return highest, total * scale + weight, mixed * scale + weight * value
