"""Backward passes that begin when their turn comes."""

import jax
import jax.numpy as jnp
import numpy as np

from blt_jax.models import late

_NOTHING_SAVED = jax.checkpoint_policies.nothing_saveable


def _layer(params, x, index, nothing, factors):
  del nothing
  hidden = jnp.tanh(jnp.exp(-jnp.abs(x @ params["w"])) * factors + index)
  return x + hidden @ params["w"].T


def _sum(layer, params, x):
  for index in range(4):
    x = layer(params, x, jnp.int32(index), None, jnp.full((1, 48), 0.5))
  return (x * x).sum()


def _arguments():
  numbers = np.random.default_rng(0)
  params = {"w": jnp.asarray(numbers.normal(size=(16, 48)) / 8, jnp.float32)}
  return params, jnp.asarray(numbers.normal(size=(1024, 16)), jnp.float32)


def _compiled(layer):
  differentiated = jax.value_and_grad(lambda *args: _sum(layer, *args), argnums=(0, 1))
  return jax.jit(differentiated).lower(*_arguments()).compile()


def test_same_gradients_in_less_memory():
  plain, recomputed = _compiled(_layer), _compiled(late.recomputed(_layer, _NOTHING_SAVED))
  for one, other in zip(
    jax.tree.leaves(plain(*_arguments())),
    jax.tree.leaves(recomputed(*_arguments())),
    strict=True,
  ):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
  temporary = [c.memory_analysis().temp_size_in_bytes for c in (plain, recomputed)]
  assert temporary[1] < 0.7 * temporary[0]


def test_what_is_not_differentiated_may_vary():
  layer = late.recomputed(_layer, _NOTHING_SAVED)
  params, x = _arguments()
  of_x = jax.grad(lambda x: _sum(layer, params, x))(x)
  expected = jax.grad(lambda x: _sum(_layer, params, x))(x)
  np.testing.assert_allclose(of_x, expected, rtol=1e-5, atol=1e-5)


def test_what_is_no_number_stays_so():
  layer = late.recomputed(_layer, _NOTHING_SAVED)
  params, x = _arguments()
  for bad in (jnp.nan, jnp.inf):
    gradient = jax.grad(lambda x, bad=bad: bad * _sum(layer, params, x))(x)
    assert not jnp.isfinite(gradient).any()
