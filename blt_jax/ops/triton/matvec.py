"""A matrix times a few vectors on an NVIDIA GPU, with the norm before it and what follows."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from blt_jax.ops.triton.call import call, fits_head, start_loads

MAX_VECTORS = 8  # more are better served by a matrix product
TILE = 4  # results of a program; fewer of some big matrices
_COLUMNS = 1024  # of heads, read at once
_BIG = 2**23  # elements of a matrix that, for one vector, many small programs read faster


def fits_matvec(x: jax.Array, size: int) -> bool:
  """Whether `matvec` takes x [n, in] and gives [n, size]."""
  return len(x) <= MAX_VECTORS and x.shape[1] % 256 == 0 and size % TILE == 0


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
  tile, warps, columns = _plan(number, width, size, is_gated)
  chunk = next(c for c in (2048, 1024, 512, 256) if c <= columns and width % c == 0)
  inputs = [x, matrix] + [a for a in (scale, residual) if a is not None]
  kernel = functools.partial(
    _matvec_kernel, width=width, chunk=chunk, size=size, tile=tile, epsilon=epsilon,
    has_norm=scale is not None, is_gated=is_gated, factor=factor, number=number,
    has_residual=residual is not None, warps=warps, interpret=interpret,
  )  # fmt: skip
  out_shape = jax.ShapeDtypeStruct((number, size), x.dtype)
  return call(
    kernel, [out_shape], *inputs, grid=(size // tile,), num_warps=warps, interpret=interpret
  )[0]


def _plan(number, width, size, is_gated):
  """Results of a program, its warps, columns at once: what was fastest on an H200."""
  if number > 1 or width * size * (2 if is_gated else 1) < _BIG:
    return TILE, 4, 256 if width <= 1024 else 512
  if is_gated:
    return 2, 4, 2048
  return (1, 1, 512) if width > 4096 else (2, 1, 1024)


def _matvec_kernel(
  x_ref, matrix_ref, *refs, width, chunk, size, tile, epsilon, has_norm, is_gated,
  has_residual, factor, number, warps, interpret,
):  # fmt: skip
  out_ref, first = refs[-1], pl.program_id(0) * tile
  columns = [pl.ds(c, chunk) for c in range(0, width, chunk)]
  rows = [pl.ds(first, tile)] + ([pl.ds(size + first, tile)] if is_gated else [])
  # Vectors are read once for each row: threads then hold the elements that they multiply.
  column = jax.lax.broadcasted_iota(jnp.int32, (tile, chunk), 1)
  repeated = [c + column for c in range(0, width, chunk)]

  def load(i):
    here = [refs[-2][i, pl.ds(first, tile)]] if has_residual else []
    return [x_ref[i, c] for c in repeated], here

  # All loads come first, so that they are under way together.
  matrix = [[matrix_ref[r, c] for c in columns] for r in rows]
  scales = [refs[0][c] for c in repeated] if has_norm else []
  loaded = load(0)
  start_loads(interpret)
  matrix = [[m.astype(jnp.float32) for m in ms] for ms in matrix]
  for i in range(number):
    vectors, residual = loaded if i == 0 else load(i)
    vectors = [v.astype(jnp.float32) for v in vectors]
    inverse = jnp.float32(1)
    if has_norm:
      total = sum(v * v for v in vectors).sum(1)
      inverse = jax.lax.rsqrt(total / width + epsilon)
      vectors = [v * scale for v, scale in zip(vectors, scales, strict=True)]
    sums = [_multiply(parts, vectors, warps) for parts in matrix]
    result = sums[0] * inverse
    if is_gated:
      result = result * jax.nn.sigmoid(result) * (sums[1] * inverse)
    if has_residual:
      result = result + factor * residual[0].astype(jnp.float32)
    out_ref[i, pl.ds(first, tile)] = result.astype(out_ref.dtype)


def _multiply(parts, vectors, warps):
  """Results [tile] of a matrix and a vector, in parts of some columns: [tile, columns] each."""
  pairs = zip(parts, vectors, strict=True)
  if warps == 1:
    return sum((part * vector).sum(1) for part, vector in pairs)
  # A sum across warps takes as long as many products.
  return sum(part * vector for part, vector in pairs).sum(1)


def fits_heads(number: int, num_heads: int, head_dim: int, size: int) -> bool:
  """Whether `heads_matvec` takes `number` vectors of heads and gives `size` results."""
  fits = fits_head(head_dim) and head_dim <= _COLUMNS
  return number <= MAX_VECTORS and fits and size % TILE == 0


def heads_matvec(
  mix, inputs, matrix: jax.Array, residual: jax.Array, head_dim: int, factor: float,
  interpret: bool,
) -> jax.Array:  # fmt: skip
  """Mixes heads and multiplies them by a matrix; each program mixes them anew.

  Args:
    mix: loads what vector i and heads `pl.ds(first, h)` need, from references to `inputs`,
      and gives a function that gives float32 [h, H] of it.
    inputs: arrays.
    matrix: [out, N H].
    residual: [n, out], of which `factor` times is added.
    head_dim: H.
    factor: see `residual`.
    interpret: run as plain jax, for tests.

  Returns:
    [n, out] in the dtype of `residual`.
  """
  num_heads = matrix.shape[1] // head_dim
  # As many heads at once as there are columns, in a power of two.
  count = min(num_heads & -num_heads, _COLUMNS // head_dim)
  kernel = functools.partial(
    _heads_kernel, mix=mix, count=count, factor=factor, interpret=interpret
  )
  arrays = (*inputs, matrix.reshape(-1, num_heads, head_dim), residual)
  out_shape = jax.ShapeDtypeStruct(residual.shape, residual.dtype)
  return call(kernel, [out_shape], *arrays, grid=(len(matrix) // TILE,), interpret=interpret)[0]


def _heads_kernel(*refs, mix, count, factor, interpret):
  *input_refs, matrix_ref, residual_ref, out_ref = refs
  rows = pl.ds(pl.program_id(0) * TILE, TILE)
  chunks = [pl.ds(h, count) for h in range(0, matrix_ref.shape[1], count)]
  matrix = [matrix_ref[rows, heads, :] for heads in chunks]
  for i in range(len(out_ref)):
    residual = residual_ref[i, rows]
    mixes = [mix(i, heads, *input_refs) for heads in chunks]
    start_loads(interpret)
    # Rounded as where the heads are stored.
    rounded = [mixed().astype(out_ref.dtype).astype(jnp.float32) for mixed in mixes]
    products = [m.astype(jnp.float32) * v[None] for m, v in zip(matrix, rounded, strict=True)]
    result = sum(products).sum(axis=2).sum(axis=1) + factor * residual.astype(jnp.float32)
    out_ref[i, rows] = result.astype(out_ref.dtype)
