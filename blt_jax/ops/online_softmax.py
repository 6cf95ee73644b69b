"""A softmax that takes its scores in one block after the other; in powers of two.

Its state is the largest score so far and the sum of the weights, float32 [...] both, and
the sum of the weighted values, float32 [..., H]. The same serves whole arrays and what a
program of a kernel holds.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

State = tuple[jax.Array, jax.Array, jax.Array]

LOG2_E = math.log2(math.e)  # a factor that scores must have, for `exp2`
MASKED = -1e30  # the score of what is not seen
LOWEST = -1e29  # the largest score of nothing, beside which what is not seen has no weight


def nothing(shape: tuple[int, ...], head_dim: int) -> State:
  """The state of softmaxes of this shape that have seen nothing."""
  return (
    jnp.full(shape, LOWEST, jnp.float32),
    jnp.zeros(shape, jnp.float32),
    jnp.zeros((*shape, head_dim), jnp.float32),
  )


def add(
  state: State,
  scores: jax.Array,
  mix: Callable[[jax.Array], jax.Array],
  spread: Callable[[jax.Array], jax.Array] = lambda x: x[..., None],
) -> State:
  """Takes in a block of scores.

  Args:
    state: of the softmaxes.
    scores: float32 [..., K].
    mix: gives the sums of the block's values, [..., H], from their weights [..., K].
    spread: repeats a number of each softmax along its scores or values; for one softmax
      whose numbers are scalars, the identity.
  """
  largest, total, mixed = state
  highest = jnp.maximum(largest, scores.max(axis=-1))
  scale = jnp.exp2(largest - highest)
  weights = jnp.exp2(scores - spread(highest))
  return highest, total * scale + weights.sum(axis=-1), mixed * spread(scale) + mix(weights)


def add_row(state: State, scores: jax.Array, values: jax.Array) -> State:
  """Takes scores [K] and values [K, H] into one softmax."""
  return add(state, scores, lambda weights: (weights[:, None] * values).sum(0), lambda x: x)


def add_one(state: State, score: jax.Array, value: jax.Array) -> State:
  """Takes one score and its value [H] into one softmax."""
  largest, total, mixed = state
  highest = jnp.maximum(largest, score)
  scale, weight = jnp.exp2(largest - highest), jnp.exp2(score - highest)
  return highest, total * scale + weight, mixed * scale + weight * value


def merge(states: Sequence[State]) -> State:
  """The state of softmaxes whose scores were taken in apart."""
  highest = functools.reduce(jnp.maximum, [largest for largest, _, _ in states])
  scales = [jnp.exp2(largest - highest) for largest, _, _ in states]
  totals = [state[1] * scale for state, scale in zip(states, scales, strict=True)]
  mixed = [state[2] * scale[..., None] for state, scale in zip(states, scales, strict=True)]
  return highest, functools.reduce(jnp.add, totals), functools.reduce(jnp.add, mixed)
