"""Root-mean-square normalisation."""

import functools

import jax
import jax.numpy as jnp

from blt_jax.ops import device
from blt_jax.ops.triton import norm_gradient


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
  """Normalises the last axis; float32 inside.

  Args:
    x: [..., D].
    scale: [D] learned gain.
    epsilon: added to the mean square.

  Returns:
    [..., D] in the dtype of `x`.
  """
  x32 = x.astype(jnp.float32)
  inverse_rms = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + epsilon)
  leading = range(x.ndim - 1)
  scaled = x32 * inverse_rms * jnp.expand_dims(scale.astype(jnp.float32), leading)
  return scaled.astype(x.dtype)


def fan_out(
  x: jax.Array, scale: jax.Array, epsilon: float, readers: int
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
  """`rms_norm` for several readers, beside a residual stream.

  The result is handed out once for each reader, and so is `x`, so that a kernel can take
  the gradients of all in one pass. Where kernels train, it has to be called on each
  device's shard.

  Args:
    x: [..., D].
    scale: [D] learned gain.
    epsilon: added to the mean square.
    readers: how many.

  Returns:
    `x` for all that reads it from here on, and for each reader [..., D].
  """
  if device.kernels() == "triton" and norm_gradient.fits(x):
    return _fan_out(x, scale, epsilon, readers)
  return x, (rms_norm(x, scale, epsilon),) * readers


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _fan_out(x, scale, epsilon, readers):
  return x, (rms_norm(x, scale, epsilon),) * readers


def _save(x, scale, epsilon, readers):
  return _fan_out(x, scale, epsilon, readers), (x, scale)


def _backward(epsilon, readers, residuals, gradients):
  del readers
  (x, scale), (to_itself, to_readers) = residuals, gradients
  return norm_gradient.rms_norm_gradient(x, scale, to_itself, to_readers, epsilon)


_fan_out.defvjp(_save, _backward)
