"""AdamW and its learning-rate schedules, as in Meta's `optim.py`."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from blt_jax.training.groups import REST, Group, label_of, labels

_DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
  """How the learning rate moves; the factor at step 0 is 0 with a warm-up.

  Attributes:
    name: shape after the warm-up.
    warmup_steps: linear rise from 0.
    min_ratio: where "cosine", "linear", "inv_sqrt" and the end of "wsd" stay or aim at.
    cycle_length: fraction of all steps in one cycle ("cosine", "wsd").
    cosine_theta: exponent of the step in "cosine".
    decay_fraction: last part of a cycle in which "wsd" decays.
    exponent: of "inv_sqrt".
  """

  name: Literal["constant", "linear", "inv_sqrt", "cosine", "wsd"] = "cosine"
  warmup_steps: int = 2000
  min_ratio: float = 0.1
  cycle_length: float = 1.0
  cosine_theta: float = 1.0
  decay_fraction: float = 0.1
  exponent: float = 0.5

  def __post_init__(self):
    known = ("constant", "linear", "inv_sqrt", "cosine", "wsd")
    if self.name not in known:
      raise ValueError(f"Unknown schedule {self.name!r}; choose one of {known}.")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW on all parameters, norms and embeddings included.

  Attributes:
    learning_rate: peak.
    beta1: decay of the mean of gradients.
    beta2: decay of the mean of squared gradients.
    epsilon: added to the root of the latter.
    weight_decay: decoupled, times the learning rate.
    clip_norm: bound of the global gradient norm, once per update.
    param_dtype: "float32", or "bfloat16": half the memory, but updates below a 256th of
      a parameter are lost, as most are late in a run.
    moment_dtype: in which both means are stored, likewise; computed in float32. With
      bfloat16, keep `beta2` below 0.99: smaller changes of the second would be lost.
  """

  learning_rate: float | jax.Array = 4e-4
  beta1: float = 0.9
  beta2: float = 0.95
  epsilon: float = 1e-8
  weight_decay: float = 0.1
  clip_norm: float = 1.0
  param_dtype: str = "float32"
  moment_dtype: str = "float32"

  def __post_init__(self):
    for name in ("param_dtype", "moment_dtype"):
      if getattr(self, name) not in _DTYPES:
        raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {_DTYPES}.")


def schedule(config: ScheduleConfig, num_steps: int) -> optax.Schedule:
  """The factor of the learning rate as a function of the step.

  Args:
    config: the shape.
    num_steps: length of the whole run.
  """
  c = config
  # As in the reference, a constant rate has no warm-up.
  warmup = 0 if c.name == "constant" else c.warmup_steps
  after = {
    "constant": jnp.ones_like,
    "linear": lambda step: _linear(c, step, num_steps),
    "inv_sqrt": lambda step: _inverse_power(c, step),
    "cosine": lambda step: _cosine(c, step, num_steps),
    "wsd": lambda step: _warmup_stable_decay(c, step, num_steps),
  }[c.name]

  def factor(step: jax.typing.ArrayLike) -> jax.Array:
    step = jnp.asarray(step, jnp.float32)
    return jnp.where(step < warmup, step / max(warmup, 1), after(step))

  return factor


def _linear(c, step, num_steps):
  progress = (step - c.warmup_steps) / max(num_steps - c.warmup_steps, 1)
  return jnp.where(step <= num_steps, progress * c.min_ratio + 1 - progress, c.min_ratio)


def _inverse_power(c, step):
  start = max(c.warmup_steps, 1)
  return jnp.maximum((start / jnp.maximum(step, 1)) ** c.exponent, c.min_ratio)


def _cosine(c, step, num_steps):
  progress = (step - c.warmup_steps) / max(num_steps - c.warmup_steps, 1)
  sign = jnp.where((step // (num_steps * c.cycle_length)) % 2 == 0, 1.0, -1.0)
  angle = math.pi * jnp.maximum(progress, 0) ** c.cosine_theta / c.cycle_length
  wave = c.min_ratio + 0.5 * (1 - c.min_ratio) * (sign * jnp.cos(angle) + 1)
  return jnp.where(step <= num_steps, wave, c.min_ratio)


def _warmup_stable_decay(c, step, num_steps):
  cycle = int(num_steps * c.cycle_length)
  end = cycle * (step // cycle + 1)
  decay = (end * c.decay_fraction).astype(jnp.int32)
  # The reference divides by the end of the cycle, so the decay stops above min_ratio.
  progress = (step - (end - decay)) / end
  decayed = 1 / (progress / c.min_ratio + 1 - progress)
  return jnp.where(step < end - decay, 1.0, decayed)


def learning_rate(
  config: OptimizerConfig, schedule_config: ScheduleConfig, num_steps: int
) -> optax.Schedule:
  """The learning rate as a function of the step."""
  factor = schedule(schedule_config, num_steps)
  return lambda step: config.learning_rate * factor(step)


def adamw(
  config: OptimizerConfig, rate: optax.Schedule, groups: Sequence[Group] = ()
) -> optax.GradientTransformation:
  """Clipping of the global norm, then AdamW under the learning rate `rate`.

  Args:
    config: of the optimizer.
    rate: of parameters in no group.
    groups: which learn otherwise. The norm is that of the parameters that ever learn.
  """
  clip = optax.clip_by_global_norm(config.clip_norm)
  rest = _adamw(config, rate, config.weight_decay)
  if not groups:
    return optax.chain(clip, rest)
  updates = {REST: rest} | {
    label_of(number): _of_group(config, rate, group) for number, group in enumerate(groups)
  }
  kept = {
    label: optax.set_to_zero() if _is_frozen(label, groups) else optax.identity()
    for label in updates
  }

  def find(params):
    return labels(groups, params)

  return optax.chain(optax.partition(kept, find), clip, optax.partition(updates, find))


def _is_frozen(label: str, groups: Sequence[Group]) -> bool:
  return any(g.is_frozen and label_of(i) == label for i, g in enumerate(groups))


def group_rate(rate: optax.Schedule, group: Group) -> optax.Schedule:
  """The learning rate of a group's parameters, where `rate` is that of the rest."""
  if group.is_frozen:
    return jnp.zeros_like
  return lambda step: jnp.where(
    step < group.first_step, 0.0, group.learning_rate_scale * rate(step)
  )


def _of_group(config, rate, group):
  if group.is_frozen:
    return optax.set_to_zero()
  weight_decay = config.weight_decay * group.weight_decay_scale
  return _adamw(config, group_rate(rate, group), weight_decay)


def _adamw(config, rate, weight_decay):
  update = optax.adamw(
    rate, b1=config.beta1, b2=config.beta2, eps=config.epsilon, weight_decay=weight_decay
  )
  return _store_moments(update, config.moment_dtype)


def _store_moments(inner, dtype):
  """The same update, its floats stored in `dtype` between steps and float32 within."""

  def cast(tree, dtype):
    floating = jnp.floating
    return jax.tree.map(
      lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, floating) else x, tree
    )

  def init(params):
    return cast(inner.init(params), dtype)

  def update(gradients, state, params=None):
    updates, state = inner.update(gradients, cast(state, jnp.float32), params)
    return updates, cast(state, dtype)

  return optax.GradientTransformation(init, update)
