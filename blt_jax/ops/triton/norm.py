"""Root-mean-square normalisation of many vectors on an NVIDIA GPU, in one kernel."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from blt_jax.ops.triton.call import call


def fits_norm(x: jax.Array) -> bool:
  """Whether `rms_norm` takes x [n, D]."""
  return x.shape[1] % 256 == 0


def rms_norm(
  x: jax.Array, scale: jax.Array, epsilon: float, interpret: bool = False
) -> jax.Array:
  """As `norm.rms_norm` of x [n, D]."""
  chunk = next(c for c in (1024, 512, 256) if x.shape[1] % c == 0)
  kernel = functools.partial(_norm_kernel, chunk=chunk, epsilon=epsilon)
  out_shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
  return call(kernel, [out_shape], x, scale, grid=(len(x),), interpret=interpret)[0]


def _norm_kernel(x_ref, scale_ref, out_ref, *, chunk, epsilon):
  row, width = pl.program_id(0), x_ref.shape[1]
  columns = [pl.ds(c, chunk) for c in range(0, width, chunk)]
  vectors = [x_ref[row, c].astype(jnp.float32) for c in columns]
  inverse = jax.lax.rsqrt(sum(jnp.sum(v * v) for v in vectors) / width + epsilon)
  for vector, c in zip(vectors, columns, strict=True):
    scale = scale_ref[c].astype(jnp.float32)
    out_ref[row, c] = (vector * inverse * scale).astype(out_ref.dtype)
