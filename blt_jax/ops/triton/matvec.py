"""A matrix times a few vectors on an NVIDIA GPU, with the norm before it and what follows."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from blt_jax.ops.triton.call import call, fits_head

MAX_VECTORS = 8  # more are better served by a matrix product
TILE = 4  # results of a program; fewer of some big matrices
_COLUMNS = 1024  # of the matrix, read at once
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
    has_residual=residual is not None,
  )  # fmt: skip
  out_shape = jax.ShapeDtypeStruct((number, size), x.dtype)
  return call(
    kernel, [out_shape], *inputs, grid=(size // tile,), num_warps=warps, interpret=interpret
  )[0]


def _plan(number, width, size, is_gated):
  """Results of a program, its warps, columns at once: what was fastest on an H200."""
  if number > 1 or width * size * (2 if is_gated else 1) < _BIG:
    return TILE, 4, _COLUMNS
  if is_gated:
    return 2, 4, 2048
  return (1, 1, 512) if width > 4096 else (2, 1, 1024)


def _matvec_kernel(
  x_ref, matrix_ref, *refs, width, chunk, size, tile, epsilon, has_norm, is_gated,
  has_residual, factor, number,
):  # fmt: skip
  out_ref, first = refs[-1], pl.program_id(0) * tile
  columns = [pl.ds(c, chunk) for c in range(0, width, chunk)]
  rows = [pl.ds(first, tile)] + ([pl.ds(size + first, tile)] if is_gated else [])
  # All loads of the matrix come first, so that they are under way together.
  matrix = [[matrix_ref[r, c].astype(jnp.float32) for c in columns] for r in rows]
  for i in range(number):
    vectors = [x_ref[i, c].astype(jnp.float32) for c in columns]
    inverse = jnp.float32(1)
    if has_norm:
      total = sum(jnp.sum(v * v) for v in vectors)
      inverse = jax.lax.rsqrt(total / width + epsilon)
      vectors = [v * refs[0][c] for v, c in zip(vectors, columns, strict=True)]
    sums = [
      sum((m * v[None]).sum(1) for m, v in zip(ms, vectors, strict=True)) for ms in matrix
    ]
    result = sums[0] * inverse
    if is_gated:
      result = result * jax.nn.sigmoid(result) * (sums[1] * inverse)
    if has_residual:
      residual = refs[-2][i, pl.ds(first, tile)].astype(jnp.float32)
      result = result + factor * residual
    out_ref[i, pl.ds(first, tile)] = result.astype(out_ref.dtype)


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
    mix: float32 [h, H] of vector i and heads `pl.ds(first, h)`, from references to `inputs`.
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
  kernel = functools.partial(_heads_kernel, mix=mix, count=count, factor=factor)
  arrays = (*inputs, matrix.reshape(-1, num_heads, head_dim), residual)
  out_shape = jax.ShapeDtypeStruct(residual.shape, residual.dtype)
  return call(kernel, [out_shape], *arrays, grid=(len(matrix) // TILE,), interpret=interpret)[0]


def _heads_kernel(*refs, mix, count, factor):
  *input_refs, matrix_ref, residual_ref, out_ref = refs
  rows = pl.ds(pl.program_id(0) * TILE, TILE)
  chunks = [pl.ds(h, count) for h in range(0, matrix_ref.shape[1], count)]
  matrix = [matrix_ref[rows, heads, :].astype(jnp.float32) for heads in chunks]
  for i in range(len(out_ref)):
    result = factor * residual_ref[i, rows].astype(jnp.float32)
    for tile, heads in zip(matrix, chunks, strict=True):
      # Rounded as where the heads are stored.
      mixed = mix(i, heads, *input_refs).astype(out_ref.dtype).astype(jnp.float32)
      result += (tile * mixed[None]).sum(axis=2).sum(axis=1)
    out_ref[i, rows] = result.astype(out_ref.dtype)
