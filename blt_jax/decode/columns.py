"""Along the bytes of one read, of which there are mostly very few.

A few elementwise steps are fused with what is around; a lookup or a scan is not, and takes
a kernel of its own.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

_FEW = 16


def pick(values: jax.Array, at: jax.Array) -> jax.Array:
  """Values [B, C, ...] at places [B]: [B, ...]."""
  if values.shape[1] > _FEW:
    return jax.vmap(lambda row, place: row[place])(values, at)
  picked = values[:, 0]
  for i in range(1, values.shape[1]):
    picked = jnp.where((at >= i).reshape(-1, *[1] * (values.ndim - 2)), values[:, i], picked)
  return picked


def running_sum(values: jax.Array) -> jax.Array:
  """Sums of integers [B, C] up to each place."""
  return _running(jnp.add, jnp.cumsum, values)


def running_max(values: jax.Array) -> jax.Array:
  """Maxima of values [B, C] up to each place."""
  return _running(jnp.maximum, jax.lax.cummax, values)


def _running(step: Callable, scan: Callable, values: jax.Array) -> jax.Array:
  if values.shape[1] > _FEW:
    return scan(values, axis=1)
  columns = [values[:, 0]]
  for column in values.T[1:]:
    columns.append(step(columns[-1], column))
  return jnp.stack(columns, axis=1)
