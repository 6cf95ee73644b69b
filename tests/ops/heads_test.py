"""Tests of ops/heads.py against sums over an axis of heads."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from golden_cases import SAME

from blt_jax.ops import heads


def normal(seed, *shape, dtype=jnp.float32):
  return jax.random.normal(jax.random.key(seed), shape, dtype)


def value_and_gradients(function, *inputs):
  output, backward = jax.vjp(function, *inputs)
  return output, backward(jnp.cos(output))


def apart(x):
  return x.reshape(*x.shape[:-1], 3, 4)


def test_dot_and_its_gradients():
  inputs = normal(0, 2, 5, 12), normal(1, 2, 5, 12)
  got = value_and_gradients(lambda a, b: heads.dot(a, b, 3), *inputs)
  want = value_and_gradients(lambda a, b: jnp.sum(apart(a) * apart(b), axis=-1), *inputs)
  chex.assert_trees_all_close(got, want, **SAME)


def test_scale_and_its_gradients():
  inputs = normal(0, 2, 5, 12), normal(1, 2, 5, 3)
  got = value_and_gradients(heads.scale, *inputs)
  want = value_and_gradients(
    lambda x, factors: (apart(x) * factors[..., None]).reshape(x.shape), *inputs
  )
  chex.assert_trees_all_close(got, want, **SAME)


def test_dot_of_bfloat16_rounds_nothing_but_the_sum():
  a, b = (normal(i, 7, 12, dtype=jnp.bfloat16) for i in (0, 1))
  exact = np.sum(apart(np.float64(a)) * apart(np.float64(b)), axis=-1)
  got = heads.dot(a, b, 3)
  assert got.dtype == jnp.float32
  chex.assert_trees_all_close(got, exact.astype(np.float32), **SAME)


def test_each_query_has_its_key_beside_it():
  x = jnp.arange(6).reshape(1, 3, 2)  # three heads of two
  chex.assert_trees_all_equal(
    heads.side_by_side(x, 6), jnp.array([[0, 1, 0, 1, 2, 3, 2, 3, 4, 5, 4, 5]])
  )
