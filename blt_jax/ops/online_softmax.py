"""A softmax that takes its scores in one after another, within kernels; in powers of two.

Its state is the largest score so far, the sum of the weights, and the sum of the weighted
values [H], all float32.
"""

import math
from typing import Any

import jax.numpy as jnp

LOG2_E = math.log2(math.e)  # a factor that scores must have, for `exp2`
MASKED = -1e30  # the score of what is not seen
LOWEST = -1e29  # a largest score of nothing, beside which what is not seen has no weight


def nothing(head_dim: int) -> Any:
  """The state of a softmax that has seen nothing."""
  return jnp.float32(MASKED), jnp.float32(0), jnp.zeros(head_dim, jnp.float32)


def add(state: Any, scores: Any, value: Any) -> Any:
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


def add_one(state: Any, score: Any, value: Any) -> Any:
  """Takes in one score and its value [H]."""
  largest, total, mixed = state
  highest = jnp.maximum(largest, score)
  scale, weight = jnp.exp2(largest - highest), jnp.exp2(score - highest)
  weight = jnp.where(score > MASKED, weight, 0)
  return highest, total * scale + weight, mixed * scale + weight * value
