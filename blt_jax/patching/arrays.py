"""Arrays of numpy or of jax: which of the two makes more of the kind."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = Any  # np.ndarray or jax.Array


def namespace(array: Array) -> Any:
  """`jax.numpy` for a jax array [...], traced or not; else `numpy`."""
  return jnp if isinstance(array, jax.Array) else np


def is_traced(array: Array) -> bool:
  """Whether an array [...] has no values yet, as under `jit`."""
  return isinstance(array, jax.core.Tracer)
