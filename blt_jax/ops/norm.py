"""Root-mean-square normalisation."""

import jax
import jax.numpy as jnp


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
  return (x32 * inverse_rms * scale.astype(jnp.float32)).astype(x.dtype)
