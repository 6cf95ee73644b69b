"""The train step of a run and all that it is made of, for `train` and `train_compile` alike."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from blt_jax import config as settings
from blt_jax import kinds
from blt_jax.ops import device
from blt_jax.parallel import sharding
from blt_jax.training import state as train_state
from blt_jax.training import steps


@dataclasses.dataclass(frozen=True)
class Program:
  """What `config` makes of a mesh.

  Attributes:
    mesh: the devices.
    model: the module.
    optimizer: its updates.
    learning_rate: as a function of the step.
    seed: of fresh parameters.
    param_dtype: of parameters.
    abstract_state: shapes, dtypes and shardings of the state.
    step: one update, a pure function of state and batch.
    options: how to compile it, for `jax.jit`.
  """

  mesh: Mesh
  model: nn.Module
  optimizer: optax.GradientTransformation
  learning_rate: optax.Schedule
  seed: int
  param_dtype: str
  abstract_state: train_state.TrainState
  step: Callable[..., Any]
  options: dict[str, Any]

  def create_state(self) -> train_state.TrainState:
    """A fresh start, each array directly where it belongs."""
    return train_state.create_state(
      self.model, self.optimizer, self.seed, self.mesh, self.param_dtype
    )

  def train_step(self) -> Callable[..., Any]:
    """The compiled update: (state, batch) -> (state, metrics); it donates the state."""
    return sharding.jit(self.step, self.mesh, **self.options)

  def trace(self, batch: steps.Batch) -> jax.stages.Traced:
    """The update ready to be compiled, for a batch of shapes."""
    with sharding.on_mesh(self.mesh):
      return jax.jit(self.step, **self.options).trace(self.abstract_state, batch)


def make_program(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Program:
  """Builds the program of a run.

  Args:
    config: the whole settings.
    devices: to run on, present or of a topology to compile for; by default all.

  Raises:
    ValueError: the mesh does not fit the devices, the batch or the model.
  """
  mesh = sharding.make_mesh(**config.mesh, devices=devices)
  accumulate, param_dtype = config.optimizer.accumulate, config.optimizer.param_dtype
  sharding.check_batch_size(config.data.batch_size, accumulate, mesh)
  model = kinds.build_model(settings.make_model_config(config.model))
  optimizer, learning_rate = settings.make_optimizer(config)
  state = train_state.abstract_state(model, optimizer, mesh, param_dtype)
  # Left to the compiler, the state might come out placed otherwise than it went in.
  placed = jax.tree.map(lambda x: x.sharding, state)
  return Program(
    mesh=mesh,
    model=model,
    optimizer=optimizer,
    learning_rate=learning_rate,
    seed=config.seed,
    param_dtype=param_dtype,
    abstract_state=state,
    step=steps.make_train_step(
      model, optimizer, accumulate, settings.make_groups(config), config.num_steps
    ),
    options=dict(
      donate_argnames="state",
      out_shardings=(placed, None),
      compiler_options=device.compiler_options(mesh.devices.flat[0]),
    ),
  )


def abstract_batch(config: ConfigDict, mesh: Mesh) -> steps.Batch:
  """Shapes, dtypes and shardings of a batch as `data.pipeline` makes it."""
  shape = settings.make_batch_shape(config)

  def array(width, dtype, *others):
    sizes = *others, shape.batch_size, width
    placed = sharding.batch_sharding(mesh, len(sizes))
    return jax.ShapeDtypeStruct(sizes, dtype, sharding=placed)

  batch = {
    "tokens": array(shape.seq_len, jnp.int32),
    "targets": array(shape.seq_len, jnp.int32),
    "loss_mask": array(shape.seq_len, jnp.bool_),
    "patch_lengths": array(shape.num_patches, jnp.int32),
  }
  if kinds.find_kind(config.model.kind).reads_pieces:
    batch["target_bytes"] = array(shape.seq_len, jnp.int32)
  if tables := config.model.get("ngram_vocab_sizes"):
    batch["ngram_ids"] = array(shape.seq_len, jnp.int32, len(tables))
  return batch
