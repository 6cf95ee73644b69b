"""Rotary position embedding, on adjacent pairs (0, 1), (2, 3), ... or on halves of a head.

Reference: Meta `base_transformer.py`, whose pairs are adjacent. With the rows of a matrix
ordered for it, the two halves of a head, as in Llama, are the same and cheaper to rotate.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Scaling:
  """Slower rotations for longer contexts, as Llama 3.1 and later have them ("llama3").

  A pair that turns less than `low_frequency_factor` times in the old context turns `factor`
  times slower; one that turns more than `high_frequency_factor` times stays as it is;
  between them the frequency is interpolated.

  Attributes:
    factor: how much slower the slowest pairs turn; 1 for plain rotations.
    low_frequency_factor: turns in the old context.
    high_frequency_factor: likewise, above `low_frequency_factor`.
    old_context: positions that the model was first trained with.
  """

  factor: float = 1.0
  low_frequency_factor: float = 1.0
  high_frequency_factor: float = 4.0
  old_context: int = 8192

  def __post_init__(self):
    if self.factor < 1 or self.old_context < 1:
      raise ValueError(
        f"rope_scaling has factor {self.factor} and old_context {self.old_context}; both must "
        "be >= 1."
      )
    if not 0 < self.low_frequency_factor < self.high_frequency_factor:
      raise ValueError(
        f"rope_scaling has low_frequency_factor {self.low_frequency_factor} and "
        f"high_frequency_factor {self.high_frequency_factor}; they must be positive, the first "
        "below the second."
      )


def rope_table(
  positions: jax.Array, head_dim: int, theta: float, scaling: Scaling = Scaling()
) -> tuple[jax.Array, jax.Array]:
  """Cosines and sines of the rotation angles.

  Args:
    positions: int [S] or [B, S].
    head_dim: H, even.
    theta: base of the wavelengths.
    scaling: of the frequencies.

  Returns:
    float32 cos and sin, each [..., S, 1, H], a pair's angle standing twice.
  """
  return _cos_sin(positions, np.repeat(_frequencies(head_dim, theta, scaling), 2))


def row_table(
  length: int, head_dim: int, theta: float, scaling: Scaling = Scaling()
) -> tuple[jax.Array, jax.Array]:
  """The `rope_table` of positions 0 to `length` - 1: float32 twice, [S, 1, H]."""
  rest = head_dim, theta, scaling

  def written_out():  # or a CPU would fuse cosines with what reads them, and make each again
    frequencies = np.repeat(_frequencies(*rest), 2)
    angles = np.arange(length, dtype=np.float32)[:, None, None] * frequencies
    return tuple(jnp.asarray(f(np.float64(angles)), jnp.float32) for f in (np.cos, np.sin))

  return jax.lax.platform_dependent(
    cpu=written_out, default=lambda: rope_table(jnp.arange(length), *rest)
  )


def rope_angles(
  positions: jax.Array, head_dim: int, theta: float, scaling: Scaling = Scaling()
) -> tuple[jax.Array, jax.Array]:
  """As `rope_table`, each angle once: float32 [..., S, 1, H / 2], for `rotate_halves`."""
  return _cos_sin(positions, _frequencies(head_dim, theta, scaling))


def _frequencies(head_dim: int, theta: float, scaling: Scaling) -> np.ndarray:
  """Radians per position of each pair, float32 [H / 2]."""
  exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
  frequencies = (1.0 / theta**exponents).astype(np.float32)
  turns = scaling.old_context * frequencies / (2 * np.pi)  # in the old context
  low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
  kept = np.clip((turns - low) / (high - low), 0, 1)
  return (frequencies * (kept + (1 - kept) / scaling.factor)).astype(np.float32)


def _cos_sin(positions: jax.Array, frequencies: np.ndarray) -> tuple[jax.Array, jax.Array]:
  """Of float32 angles [..., S, 1, n], at positions [..., S] and n frequencies."""
  per_position = jnp.expand_dims(frequencies, range(positions.ndim + 1))
  angles = positions[..., None, None].astype(jnp.float32) * per_position
  return jnp.cos(angles), jnp.sin(angles)


def rotate_halves(x: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Rotates heads [B, S, N, H], halves (a, b) of each, by `rope_angles`; keeps the dtype."""
  cos, sin = angles
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  rotated = [first * cos - second * sin, second * cos + first * sin]
  return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def apply_rope(x: jax.Array, table: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Rotates queries or keys [B, S, N, H] by a `rope_table`; keeps their dtype."""
  cos, sin = (jnp.expand_dims(t, range(x.ndim - t.ndim)) for t in table)
  swapped = jax.lax.platform_dependent(x, tpu=_swap_on_tpu, default=_swap)
  return (x * cos + swapped * sin).astype(x.dtype)


def _swap(x: jax.Array) -> jax.Array:
  """(a, b) -> (-b, a) for each pair."""
  pairs = jnp.flip(x.reshape(*x.shape[:-1], -1, 2), axis=-1)
  signs = jnp.expand_dims(jnp.array([-1, 1], x.dtype), range(x.ndim))
  return (pairs * signs).reshape(x.shape)


def _swap_on_tpu(x: jax.Array) -> jax.Array:
  """The same as a product with a signed permutation: far cheaper than strided slices."""
  swap = np.zeros((x.shape[-1],) * 2, np.float32)
  even = np.arange(0, x.shape[-1], 2)
  swap[even + 1, even], swap[even, even + 1] = -1, 1
  return jnp.matmul(x, swap.astype(x.dtype), precision="highest")
