"""Products head by head of vectors whose heads lie side by side, [..., N * H].

Heads are summed and spread by matrices of ones and zeros: an axis as short as a head
would be filled up on TPUs, to twice the memory and time.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def side_by_side(x: jax.Array, num_heads: int) -> jax.Array:
  """[..., G, H] -> [..., N * H], each of the G heads N / G times."""
  *lead, kv_heads, head_dim = x.shape
  return jnp.repeat(x, num_heads // kv_heads, axis=-2).reshape(*lead, num_heads * head_dim)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def dot(a: jax.Array, b: jax.Array, num_heads: int) -> jax.Array:
  """Scalar products of the heads of two [..., N * H]: float32 [..., N]."""
  product = a.astype(jnp.float32) * b.astype(jnp.float32)
  ones = _membership(a.shape[-1], num_heads, jnp.float32)
  # Three passes of a TPU are exact for products of bfloat16. GPUs would round those of float32
  precision = "high" if jnp.bfloat16 in (a.dtype, b.dtype) else "highest"
  return jnp.dot(product, ones, precision=precision)


def _dot_forward(a, b, num_heads):
  return dot(a, b, num_heads), (a, b)


def _dot_backward(num_heads, residuals, gradient):
  del num_heads
  a, b = residuals
  return scale(b, gradient).astype(a.dtype), scale(a, gradient).astype(b.dtype)


dot.defvjp(_dot_forward, _dot_backward)


@jax.custom_vjp
def scale(x: jax.Array, factors: jax.Array) -> jax.Array:
  """Multiplies the heads of [..., N * H] by [..., N] in the dtype of x: float32."""
  ones = _membership(x.shape[-1], factors.shape[-1], x.dtype)
  spread = jnp.dot(factors.astype(x.dtype), ones.T, precision="highest")
  return spread.astype(jnp.float32) * x.astype(jnp.float32)


def _scale_forward(x, factors):
  return scale(x, factors), (x, factors)


def _scale_backward(residuals, gradient):
  x, factors = residuals
  to_x = scale(gradient.astype(x.dtype), factors).astype(x.dtype)
  return to_x, dot(gradient, x, factors.shape[-1])


scale.defvjp(_scale_forward, _scale_backward)


def _membership(width: int, num_heads: int, dtype: Any) -> np.ndarray:
  """[N * H, N]: 1 where an element belongs to a head, 0 elsewhere."""
  return np.repeat(np.eye(num_heads), width // num_heads, axis=0).astype(dtype)
