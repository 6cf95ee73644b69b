"""Tests of models/transformer.py: what is recomputed, and where things lie on a mesh."""

import functools
import typing

import chex
import jax
import jax.extend
import jax.numpy as jnp
import pytest
from forward import init, stack
from golden_cases import SAME

from blt_jax.models import transformer
from blt_jax.models.config import Remat
from blt_jax.parallel import sharding

SEQ_LEN, D, F = 12, 16, 48
PROJECTIONS, MLP = 4 * D * D, 3 * D * F  # multiplications of a position in one layer
RECOMPUTED = {
  "none": 0,
  "full": PROJECTIONS + MLP - D * F,  # the last product of a block is never needed
  "attention": PROJECTIONS + MLP - D * F,
  "projections": MLP - D * F,
  "matmuls": 0,
  "dots": 0,
}


def build(**changes):
  model = transformer.Transformer(stack(D, 3, **changes))
  x = jax.random.normal(jax.random.key(0), (2, SEQ_LEN, D))
  ids = jnp.array([[0] * 7 + [1] * 5, [0] * 12])
  return model, x, ids


@functools.partial(jax.jit, static_argnums=0)
def gradient(model, params, x, ids):
  return jax.grad(lambda p: jnp.sum(jnp.sin(model.apply({"params": p}, x, ids))))(params)


def products(jaxpr, count=1):
  """Multiplications in products of two matrices, those in loops counted as often as run."""
  total = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == "dot_general":
      left, right = (v.aval.shape for v in equation.invars)
      if len(left) == len(right) == 2:
        (contracted, _), _ = equation.params["dimension_numbers"]
        total += count * left[0] * left[1] * right[0] * right[1] // left[contracted[0]]
    inside = count * equation.params.get("length", 1)
    total += sum(products(j, inside) for j in jax.extend.core.jaxprs_in_params(equation.params))
  return total


def test_every_policy_is_tested():
  assert set(RECOMPUTED) == set(typing.get_args(Remat))


@pytest.mark.parametrize("remat", RECOMPUTED)
def test_products_that_are_computed_again(remat):
  model, x, ids = build(remat=remat, window=4, mlp_dim=F)
  params = init(model, x, ids)
  jaxpr = jax.make_jaxpr(functools.partial(gradient, model))(params, x, ids)
  per_position = products(jaxpr.jaxpr) / x[..., 0].size / model.config.num_layers
  assert per_position == 3 * (PROJECTIONS + MLP) + RECOMPUTED[remat]


@pytest.mark.parametrize("remat", [r for r in RECOMPUTED if r != "none"])
def test_policies_change_no_gradient(remat):
  model, x, ids = build(window=4)
  params = init(model, x, ids)
  want = gradient(model, params, x, ids)
  got = gradient(build(window=4, remat=remat)[0], params, x, ids)
  chex.assert_trees_all_close(got, want, **SAME)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs the fake devices of conftest.py")
def test_rows_and_heads_are_shared_by_a_mesh():
  model, _, _ = build(window=4, remat="matmuls")
  x = jax.random.normal(jax.random.key(0), (4, SEQ_LEN, D))
  ids = jnp.zeros((4, SEQ_LEN), jnp.int32)
  params = init(model, x, ids)
  want = gradient(model, params, x, ids)
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  got = sharding.jit(functools.partial(gradient, model), mesh)(params, x, ids)
  chex.assert_trees_all_close(got, want, **SAME)
  output = sharding.jit(lambda p, x: model.apply({"params": p}, x, ids), mesh)(params, x)
  chex.assert_shape(output.addressable_shards[0].data, (1, SEQ_LEN, D))


@pytest.mark.skipif(jax.device_count() < 8, reason="needs the fake devices of conftest.py")
def test_rows_that_go_on_are_shared_by_a_mesh():
  model, _, _ = build(window=4)
  x = jax.random.normal(jax.random.key(0), (4, SEQ_LEN, D))
  ids = jnp.zeros((4, SEQ_LEN), jnp.int32)
  params = init(model, x, ids)
  past = transformer.empty_past(model.config, 4, "float32")

  def resume(params, x, past):
    positions = jnp.arange(SEQ_LEN)
    return model.apply({"params": params}, x, ids, positions, past, method="resume")

  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  got = sharding.jit(resume, mesh)(params, x, past)
  chex.assert_trees_all_close(got, jax.jit(resume)(params, x, past), **SAME)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs the fake devices of conftest.py")
def test_heads_that_do_not_divide():
  model, x, ids = build(num_kv_heads=1)
  params = init(model, x, ids)
  mesh = sharding.make_mesh(data=2, fsdp=1, tensor=4)
  with pytest.raises(ValueError, match="num_kv_heads 1 must be a multiple of the 4 devices"):
    sharding.jit(lambda p, x: model.apply({"params": p}, x, ids), mesh)(params, x)
