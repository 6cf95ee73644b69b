"""Root-mean-square normalisation."""

import jax
import jax.numpy as jnp

from blt_jax.ops import device
from blt_jax.ops.triton import norm_gradient


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
  """Normalises the last axis; float32 inside.

  Where kernels train, it has to be called on each device's shard.

  Args:
    x: [..., D].
    scale: [D] learned gain.
    epsilon: added to the mean square.

  Returns:
    [..., D] in the dtype of `x`.
  """
  if device.kernels() == "triton" and norm_gradient.fits(x):
    return _with_kernel(x, scale, epsilon)
  return _rms_norm(x, scale, epsilon)


def _rms_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
  x32 = x.astype(jnp.float32)
  inverse_rms = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + epsilon)
  return (x32 * inverse_rms * scale.astype(jnp.float32)).astype(x.dtype)


# Forward, XLA merges a norm with what comes before it; backward it reads rows many times.
_with_kernel = jax.custom_vjp(_rms_norm, nondiff_argnums=(2,))


def _save(x, scale, epsilon):
  return _rms_norm(x, scale, epsilon), (x, scale)


def _backward(epsilon, residuals, gradient):
  return norm_gradient.rms_norm_gradient(*residuals, gradient, epsilon)


_with_kernel.defvjp(_save, _backward)
