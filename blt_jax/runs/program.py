"""The train step of a run and all that it is made of, for `train` and `train_compile` alike."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from blt_jax import config as settings
from blt_jax import kinds
from blt_jax.ops import device
from blt_jax.parallel import sharding
from blt_jax.runs import device_entropies, distillation
from blt_jax.training import state as train_state
from blt_jax.training import steps
from blt_jax.training.distillation import weigh


@dataclasses.dataclass(frozen=True)
class Program:
  """What `config` makes of a mesh.

  Attributes:
    mesh: the devices.
    model: the module.
    optimizer: its updates.
    learning_rate: as a function of the step.
    peak: float32, the highest learning rate; an input of the step, so that runs which differ
      in it and in the seed alone share one compiled program in JAX's compilation cache.
    seed: of fresh parameters.
    param_dtype: of parameters.
    abstract_state: shapes, dtypes and shardings of the state.
    step: one update, a pure function of state, batch, peak learning rate and, where there
      is a teacher or an entropy model, `head`.
    options: how to compile it, for `jax.jit`.
    start: compiled, from a key [] to a fresh state.
    update: `step` compiled; it donates the state.
    add_up: compiled, `steps.sums` of parameters, batch and what `forward` takes by name.
    teacher: of a distillation.
    entropies: of entropies on the device.
    head: shapes, dtypes and shardings of what the step reads of either of them.
  """

  mesh: Mesh
  model: nn.Module
  optimizer: optax.GradientTransformation
  learning_rate: optax.Schedule
  peak: np.floating
  seed: int
  param_dtype: str
  abstract_state: train_state.TrainState
  step: Callable[..., Any]
  options: dict[str, Any]
  start: Callable[[jax.Array], train_state.TrainState]
  update: Callable[..., Any]
  add_up: Callable[..., steps.Metrics]
  teacher: distillation.Teacher | None = None
  entropies: device_entropies.DeviceEntropies | None = None
  head: Any = None

  def create_state(self) -> train_state.TrainState:
    """A fresh start, each array directly where it belongs."""
    return self.start(jax.random.key(self.seed))

  def train_step(self) -> Callable[..., Any]:
    """The compiled update: (state, batch) -> (state, metrics); it donates the state."""
    given = () if self.head is None else (self.loaded,)
    return lambda state, batch: self.update(state, batch, self.peak, *given)

  @functools.cached_property
  def loaded(self) -> Any:
    """What `head` describes, read once."""
    source = self.teacher or self.entropies
    return None if source is None else source.load(self.head)

  @property
  def named(self) -> device_entropies.Named:
    """What the method `forward` of the model takes by name, beside what moves."""
    return {} if self.entropies is None else self.loaded

  def sums(
    self, params: Any, batch: steps.Batch, scalars: steps.Metrics | None = None
  ) -> steps.Metrics:
    """`steps.sums`, compiled: of parameters, a batch and `TrainState.extra`."""
    return self.add_up(params, batch, (scalars or {}) | self.named)

  def trace(self, batch: steps.Batch) -> jax.stages.Traced:
    """The update ready to be compiled, for a batch of shapes."""
    given = () if self.head is None else (self.head,)
    arguments = self.abstract_state, batch, self.peak, *given
    with sharding.on_mesh(self.mesh):
      return jax.jit(self.step, **self.options).trace(*arguments)


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
  groups, frozen = settings.make_groups(config), settings.freeze(config)
  state = train_state.abstract_state(model, optimizer, mesh, param_dtype)
  # Left to the compiler, the state might come out placed otherwise than it went in.
  placed = jax.tree.map(lambda x: x.sharding, state)
  teacher, entropies = distillation.find(config), device_entropies.find(config)
  loss, head = None, None
  if teacher is not None:
    loss = distillation.make_loss(config, model, teacher, state)
    head = teacher.abstract_head(mesh, param_dtype)
  elif entropies is not None:
    model = device_entropies.attach(model, entropies.model, entropies.rule)
    loss = functools.partial(steps.cross_entropy, model)
    head = entropies.abstract(mesh)

  def step(
    state: train_state.TrainState, batch: steps.Batch, peak: jax.Array, *given: Any
  ) -> tuple[train_state.TrainState, steps.Metrics]:
    of_peak, _ = settings.make_optimizer(frozen, peak)
    update = steps.make_train_step(model, of_peak, accumulate, groups, loss, frozen.num_steps)
    return update(state, batch if teacher is None else weigh(batch), *given)

  options = dict(
    donate_argnames="state",
    out_shardings=(placed, None),
    compiler_options=device.compiler_options(mesh.devices.flat[0]),
  )
  return Program(
    mesh=mesh,
    model=model,
    optimizer=optimizer,
    learning_rate=learning_rate,
    peak=np.float32(config.optimizer.learning_rate),
    seed=config.seed,
    param_dtype=param_dtype,
    abstract_state=state,
    step=step,
    options=options,
    start=train_state.make_start(model, optimizer, placed, param_dtype),
    update=sharding.jit(step, mesh, **options),
    add_up=sharding.jit(functools.partial(steps.sums, kinds.read_all(model)), mesh),
    teacher=teacher,
    entropies=entropies,
    head=head,
  )


class Programs:
  """Makes the programs of runs that follow each other in one process.

  A run that differs from the one before in nothing but its learning rate, seed, text and
  folder shares what is traced and compiled with it.
  """

  def __init__(self):
    self._last: Program | None = None
    self._made_of: dict[str, Any] = {}

  def __call__(self, config: ConfigDict) -> Program:
    """As `make_program`."""
    made_of = _made_of(config)
    if self._last is None or made_of != self._made_of:
      self._last = None  # its compiled programs may go before there are others
      self._last, self._made_of = make_program(config), made_of
      return self._last
    return dataclasses.replace(
      self._last,
      learning_rate=settings.make_optimizer(config)[1],
      peak=np.float32(config.optimizer.learning_rate),
      seed=config.seed,
    )


def _made_of(config: ConfigDict) -> dict[str, Any]:
  """What compiled programs depend on."""
  sections = "model", "patching", "optimizer", "schedule", "distillation", "mesh"
  found = {name: config[name].to_dict() for name in sections}
  found["optimizer"].pop("learning_rate")
  return found | {"num_steps": config.num_steps, "batch_size": config.data.batch_size}


def abstract_batch(config: ConfigDict, mesh: Mesh) -> steps.Batch:
  """Shapes, dtypes and shardings of a batch as `data.pipeline` makes it."""
  shape = settings.make_batch_shape(config)

  def array(width, dtype, *others):
    sizes = *others, shape.batch_size, width
    placed = sharding.batch_sharding(mesh, len(sizes))
    return jax.ShapeDtypeStruct(sizes, dtype, sharding=placed)

  resolutions = settings.resolutions(config.model)
  nested = (resolutions,) if resolutions else ()
  batch = {
    "tokens": array(shape.seq_len, jnp.int32),
    "targets": array(shape.seq_len, jnp.int32),
    "loss_mask": array(shape.seq_len, jnp.bool_),
    "patch_lengths": array(shape.num_patches, jnp.int32, *nested),
  }
  if kinds.find_kind(config.model.kind).reads_pieces:
    batch["target_bytes"] = array(shape.seq_len, jnp.int32)
  if config.distillation.teacher:
    batch["teacher_ids"] = batch["teacher_targets"] = array(shape.num_patches, jnp.int32)
  if tables := config.model.get("ngram_vocab_sizes"):
    batch["ngram_ids"] = array(shape.seq_len, jnp.int32, len(tables))
  return batch
