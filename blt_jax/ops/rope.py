"""Rotary position embedding on adjacent pairs (0, 1), (2, 3), ...

Reference: Meta `base_transformer.py`; the half-split layout of Llama is another one.
"""

import jax
import jax.numpy as jnp
import numpy as np


def rope_table(
  positions: jax.Array, head_dim: int, theta: float
) -> tuple[jax.Array, jax.Array]:
  """Cosines and sines of the rotation angles.

  Args:
    positions: int [S] or [B, S].
    head_dim: H, even.
    theta: base of the wavelengths.

  Returns:
    float32 cos and sin, each [..., S, 1, H], a pair's angle standing twice.
  """
  frequencies = 1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
  angles = positions[..., None].astype(jnp.float32) * np.repeat(frequencies, 2)
  return jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]


def apply_rope(x: jax.Array, table: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Rotates queries or keys [B, S, N, H] by a `rope_table`; keeps their dtype."""
  cos, sin = table
  swapped = jax.lax.platform_dependent(x, tpu=_swap_on_tpu, default=_swap)
  return (x * cos + swapped * sin).astype(x.dtype)


def _swap(x):
  """(a, b) -> (-b, a) for each pair."""
  pairs = jnp.flip(x.reshape(*x.shape[:-1], -1, 2), axis=-1)
  return (pairs * jnp.array([-1, 1], x.dtype)).reshape(x.shape)


def _swap_on_tpu(x):
  """The same as a product with a signed permutation: far cheaper than strided slices."""
  swap = np.zeros((x.shape[-1],) * 2, np.float32)
  even = np.arange(0, x.shape[-1], 2)
  swap[even + 1, even], swap[even, even + 1] = -1, 1
  return jnp.matmul(x, swap.astype(x.dtype), precision="highest")
