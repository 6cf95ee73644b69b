"""All that a training step changes."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from blt_jax import sharding
from blt_jax.models.blt import BLT
from blt_jax.models.byte_lm import ByteLM
from blt_jax.models.config import BLTConfig, ByteLMConfig

Model = BLT | ByteLM


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """Step, parameters and optimizer state."""

  step: jax.Array  # int32 [], updates done
  params: Any
  opt_state: Any


def build_model(config: BLTConfig | ByteLMConfig) -> Model:
  """The module of a model's config."""
  return BLT(config) if isinstance(config, BLTConfig) else ByteLM(config)


def init_params(model: Model, rng: jax.Array) -> Any:
  """Fresh parameters; leaves carry their logical names."""
  tokens, lengths = jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 5), jnp.int32)
  if isinstance(model, ByteLM):
    return model.init(rng, tokens)["params"]
  tables = len(model.config.ngram_vocab_sizes)
  ngram_ids = jnp.zeros((tables, 1, 4), jnp.int32) if tables else None
  return model.init(rng, tokens, lengths, ngram_ids)["params"]


def fresh_params(model: Model, seed: int) -> Any:
  """Fresh parameters, a plain tree of arrays."""
  return nn.meta.unbox(init_params(model, jax.random.key(seed)))


def abstract_params(model: Model) -> Any:
  """Shapes and dtypes of a model's parameters, placed on the first local device."""
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  shapes = jax.eval_shape(lambda: fresh_params(model, seed=0))
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes)


def create_state(
  model: Model,
  optimizer: optax.GradientTransformation,
  seed: int,
  mesh: Mesh,
  param_dtype: str = "float32",
) -> TrainState:
  """Initialises a run, each array directly where it belongs."""
  init = _initialiser(model, optimizer, seed, param_dtype)
  return jax.jit(lambda: nn.meta.unbox(init()), out_shardings=_shardings(init, mesh))()


def abstract_state(
  model: Model,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
  param_dtype: str = "float32",
) -> TrainState:
  """Shapes, dtypes and shardings of a run's state, for restoring into."""
  init = _initialiser(model, optimizer, 0, param_dtype)
  shapes = nn.meta.unbox(jax.eval_shape(init))
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    _shardings(init, mesh),
  )


def _initialiser(model, optimizer, seed, param_dtype):
  def init() -> TrainState:
    params = optax.tree.cast(init_params(model, jax.random.key(seed)), param_dtype)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

  return init


def _shardings(init, mesh):
  return sharding.state_shardings(jax.eval_shape(init), mesh)
