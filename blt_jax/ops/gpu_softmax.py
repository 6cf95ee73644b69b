"""A running softmax inside a kernel, in powers of two."""

import math
from typing import Any

import jax
import jax.numpy as jnp

MASKED = -1e30
LOG2_E = math.log2(math.e)  # a factor of scores


def nothing(head_dim: int) -> Any:
  """A softmax that has seen nothing: largest score, sum of weights, weighted sum [H]."""
  return jnp.float32(MASKED), jnp.float32(0), jnp.zeros(head_dim, jnp.float32)


def add(state: Any, scores: jax.Array, value: jax.Array) -> Any:
  """Takes in scores [block] and values [block, H]."""
  largest, total, mixed = state
  highest = jnp.maximum(largest, jnp.max(scores))
  scale = jnp.exp2(largest - highest)
  weights = jnp.where(scores > MASKED, jnp.exp2(scores - highest), 0)
  return (
    highest,
    total * scale + jnp.sum(weights),
    mixed * scale + jnp.sum(weights[:, None] * value, axis=0),
  )


def add_one(state: Any, score: jax.Array, value: jax.Array) -> Any:
  """Takes in one score and its value [H]."""
  largest, total, mixed = state
  highest = jnp.maximum(largest, score)
  scale, weight = jnp.exp2(largest - highest), jnp.exp2(score - highest)
  weight = jnp.where(score > MASKED, weight, 0)
  return highest, total * scale + weight, mixed * scale + weight * value
