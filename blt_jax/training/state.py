"""All that a training step changes."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from blt_jax.models.init import init_params
from blt_jax.parallel import sharding


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class TrainState:
  """Step, parameters, optimizer state, and the scalars of a model that move by a rule.

  As a tree it has no `extra` where that is empty, as in checkpoints made before there was any.
  """

  step: jax.Array  # int32 [], updates done
  params: Any
  opt_state: Any
  extra: dict[str, jax.Array] = dataclasses.field(default_factory=dict)  # float32 [] by name

  def tree_flatten_with_keys(self) -> tuple[list[tuple[Any, Any]], tuple[str, ...]]:
    """The fields with their names, and what `tree_unflatten` has to know."""
    names = ("step", "params", "opt_state") + ("extra",) * bool(self.extra)
    return [(jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in names], names

  @classmethod
  def tree_unflatten(cls, names: tuple[str, ...], fields: Sequence[Any]) -> "TrainState":
    """From what `tree_flatten_with_keys` gave."""
    return cls(**dict(zip(names, fields, strict=True)))


def abstract_state(
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
  param_dtype: str = "float32",
) -> TrainState:
  """Shapes, dtypes and shardings of a run's state, for restoring into."""
  boxed = jax.eval_shape(_initialiser(model, optimizer, param_dtype), jax.random.key(0))
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    nn.meta.unbox(boxed),
    sharding.state_shardings(boxed, mesh),
  )


def make_start(
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  placed: Any,
  param_dtype: str = "float32",
) -> Callable[[jax.Array], TrainState]:
  """The compiled function that initialises a run: from a key [] to its state.

  Args:
    model: the module.
    optimizer: of the run.
    placed: shardings of the state, so that each array comes directly where it belongs.
    param_dtype: of parameters.
  """
  init = _initialiser(model, optimizer, param_dtype)
  return jax.jit(lambda key: nn.meta.unbox(init(key)), out_shardings=placed)


def _initialiser(model, optimizer, param_dtype):
  def init(key: jax.Array) -> TrainState:
    params = optax.tree.cast(init_params(model, key), param_dtype)
    extra = model.start_scalars() if hasattr(model, "start_scalars") else {}
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), extra)

  return init
