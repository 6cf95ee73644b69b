"""Rotary position embedding, on adjacent pairs (0, 1), (2, 3), ... or on halves of a head.

Reference: Meta `base_transformer.py`, whose pairs are adjacent. With the rows of a matrix
ordered for it, the two halves of a head, as in Llama, are the same and cheaper to rotate.
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
  return _cos_sin(positions, np.repeat(_frequencies(head_dim, theta), 2))


def rope_angles(
  positions: jax.Array, head_dim: int, theta: float
) -> tuple[jax.Array, jax.Array]:
  """As `rope_table`, each angle once: float32 [..., S, 1, H / 2], for `rotate_halves`."""
  return _cos_sin(positions, _frequencies(head_dim, theta))


def _frequencies(head_dim: int, theta: float) -> np.ndarray:
  """Radians per position of each pair, float32 [H / 2]."""
  exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
  return (1.0 / theta**exponents).astype(np.float32)


def _cos_sin(positions: jax.Array, frequencies: np.ndarray) -> tuple[jax.Array, jax.Array]:
  angles = positions[..., None, None].astype(jnp.float32) * frequencies
  return jnp.cos(angles), jnp.sin(angles)


def rotate_halves(x: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Rotates heads [B, S, N, H], halves (a, b) of each, by `rope_angles`; keeps the dtype."""
  cos, sin = angles
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  rotated = [first * cos - second * sin, second * cos + first * sin]
  return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


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
