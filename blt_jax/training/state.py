"""All that a training step changes."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from blt_jax.models.init import init_params
from blt_jax.parallel import sharding


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """Step, parameters and optimizer state."""

  step: jax.Array  # int32 [], updates done
  params: Any
  opt_state: Any


def create_state(
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  seed: int,
  mesh: Mesh,
  param_dtype: str = "float32",
) -> TrainState:
  """Initialises a run, each array directly where it belongs; one program for all seeds."""
  init = _initialiser(model, optimizer, param_dtype)
  make = jax.jit(lambda key: nn.meta.unbox(init(key)), out_shardings=_shardings(init, mesh))
  return make(jax.random.key(seed))


def abstract_state(
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
  param_dtype: str = "float32",
) -> TrainState:
  """Shapes, dtypes and shardings of a run's state, for restoring into."""
  init = _initialiser(model, optimizer, param_dtype)
  shapes = nn.meta.unbox(jax.eval_shape(init, jax.random.key(0)))
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    _shardings(init, mesh),
  )


def _initialiser(model, optimizer, param_dtype):
  def init(key: jax.Array) -> TrainState:
    params = optax.tree.cast(init_params(model, key), param_dtype)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

  return init


def _shardings(init, mesh):
  return sharding.state_shardings(jax.eval_shape(init, jax.random.key(0)), mesh)
