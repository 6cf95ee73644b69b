"""What one step computes: loss, gradients, update; and evaluation sums.

Sums and counts leave a step, never means, so that they add up over parts and batches.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from blt_jax import tokenizer
from blt_jax.models.extras import Extras
from blt_jax.ops import losses
from blt_jax.training.groups import Group, update_ratios
from blt_jax.training.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
# (params, batch, *given) -> a sum over targets, whose gradient is divided by their number; and
# metrics with `targets`, this number.
Loss = Callable[..., tuple[jax.Array, Metrics]]


def predict(
  model: nn.Module, params: Any, batch: Batch, scalars: Any = None
) -> tuple[jax.Array, Extras]:
  """Logits [B, S, V] of a batch; what only its kind of model reads goes there by name.

  Args:
    model: the module.
    params: its parameters.
    batch: arrays [B, S] by name, and patch lengths [B, P] or [R, B, P].
    scalars: `TrainState.extra`, float32 []; None for those of the model's config. Or what else
      its method `forward` takes by name, such as the parameters of an entropy model.
  """
  named = {key: batch[key] for key in model.batch_keys if key in batch} | (scalars or {})
  arguments = {"params": params}, batch["tokens"], batch["patch_lengths"]
  if hasattr(model, "forward"):
    return model.apply(*arguments, **named, method="forward")
  return model.apply(*arguments, **named), Extras()


def sums(
  model: nn.Module, params: Any, batch: Batch, scalars: Metrics | None = None
) -> Metrics:
  """Adds up a batch; arguments as of `predict`.

  Returns:
    float32 scalars: `nats` of cross entropy, `targets` that count in the loss, their `bytes`
    (EOS has none); `read_targets`, whether they count or are context only, and their
    `read_bytes`; `inputs` that are not padding, their `patches` and the `one_byte_patches`
    among these; `byte_slots` and `patch_slots`, the size of the batch.
    Where ids are pieces, these are the patches: `inputs` are the bytes in them.
    A model that makes its own patches counts these itself, see `Extras`; where it cannot
    predict everything, `dropped_targets` are what it leaves out; what it learns beside the
    cross entropy is `other_nats`.
  """
  return score_targets(model, params, batch, scalars)[0]


def score_targets(
  model: nn.Module, params: Any, batch: Batch, scalars: Metrics | None = None
) -> tuple[Metrics, jax.Array, jax.Array]:
  """As `sums`, and target by target.

  Returns:
    The sums; float32 [B, S], nats of each target, 0 where it does not count; and int32 [B, S],
    its bytes, 0 likewise.
  """
  return score_logits(*predict(model, params, batch, scalars), batch)


def score_logits(
  logits: jax.Array, extras: Extras, batch: Batch
) -> tuple[Metrics, jax.Array, jax.Array]:
  """As `score_targets`, of logits [B, S, V] that a model gave for the batch."""
  nats = losses.cross_entropy_nats(logits, batch["targets"])
  wanted, read = batch["loss_mask"], batch["targets"] != tokenizer.BOE_ID
  possible = True if extras.loss_mask is None else extras.loss_mask
  mask, read = wanted & possible, read & possible
  counts = {"nats": jnp.where(mask, nats, 0), "targets": mask, "read_targets": read}
  counts |= (_count_pieces if "target_bytes" in batch else _count_patches)(batch, mask, read)
  counts |= {
    "byte_slots": jnp.ones_like(mask),
    "patch_slots": jnp.ones_like(_finest(batch)),
  }
  if extras.loss_mask is not None:
    counts["dropped_targets"] = wanted & ~mask
  found = {k: v.sum(dtype=jnp.float32) for k, v in counts.items()} | extras.metrics
  if extras.losses:
    found["other_nats"] = sum(extras.losses.values(), jnp.zeros(()))
  return found, counts["nats"], counts["bytes"].astype(jnp.int32)


def score_entropies(
  model: nn.Module, params: Any, batch: Batch, scalars: Metrics | None = None
) -> tuple[Metrics, jax.Array, jax.Array]:
  """As `score_targets`, with entropies float32 [B, S] of what is predicted in place of nats.

  Of a model that patches by entropies of its own, they are these.
  """
  logits, extras = predict(model, params, batch, scalars)
  found = losses.entropy_nats(logits) if extras.entropies is None else extras.entropies
  return {}, found, batch["loss_mask"].astype(jnp.int32)


def score(
  model: nn.Module, params: Any, batch: Batch, scalars: Metrics | None = None
) -> tuple[jax.Array, jax.Array]:
  """How likely the target at each position is; arguments as of `predict`.

  Returns:
    float32 [B, S] log-probabilities in nats, and bool [B, S], whether it is the likeliest.
  """
  logits, _ = predict(model, params, batch, scalars)
  log_probs = -losses.cross_entropy_nats(logits, batch["targets"])
  return log_probs, logits.argmax(axis=-1) == batch["targets"]


def _count_patches(batch: Batch, mask: jax.Array, read: jax.Array) -> Metrics:
  """Arrays to be summed, of a batch whose ids are bytes."""
  is_input = batch["tokens"] != tokenizer.BOE_ID
  lengths = _finest(batch)
  starts = jnp.cumsum(lengths, axis=1) - lengths
  is_patch = (lengths > 0) & (starts < is_input.sum(axis=1, keepdims=True))
  is_byte = batch["targets"] >= tokenizer.OFFSET
  return {
    "bytes": mask & is_byte,
    "read_bytes": read & is_byte,
    "inputs": is_input,
    "patches": is_patch,
    "one_byte_patches": is_patch & (lengths == 1),
  }


def _finest(batch: Batch) -> jax.Array:
  """Patch lengths [B, P], of several resolutions [R, B, P] the finest."""
  lengths = batch["patch_lengths"]
  return lengths if lengths.ndim == 2 else lengths[0]


def _count_pieces(batch: Batch, mask: jax.Array, read: jax.Array) -> Metrics:
  """The same of a batch whose ids are pieces, by the raw bytes of its targets."""
  sizes = jnp.where(read, batch["target_bytes"], 0)
  return {
    "bytes": jnp.where(mask, sizes, 0),
    "read_bytes": sizes,
    "inputs": sizes,
    "patches": sizes > 0,
    "one_byte_patches": sizes == 1,
  }


def make_train_step(
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  accumulate: int = 1,
  groups: Sequence[Group] = (),
  loss: Loss | None = None,
  num_steps: int | None = None,
) -> Callable[..., tuple[TrainState, Metrics]]:
  """Builds one optimizer update.

  Args:
    model: the module.
    optimizer: as built by `optim`.
    accumulate: parts of the batch that are differentiated one after the other; each
      target weighs the same whatever part it is in.
    groups: of parameters, whose updates are measured.
    loss: what is differentiated; None for the cross entropy of `sums` and its `other_nats`,
      at the scalars `TrainState.extra`.
    num_steps: of the run, by the end of which these scalars are at rest; None for an endless
      one.

  Returns:
    A pure function (state, batch, *given) -> (state, metrics), where `given` is what `loss`
    takes as well; metrics are those of `loss`, `grad_norm` before clipping, `update_ratios` of
    groups, and `extra/NAME` of each scalar of the state as it was in this step.
  """
  gradient = jax.value_and_grad(loss or functools.partial(cross_entropy, model), has_aux=True)

  def differentiate(params, batch, *given):
    (_, metrics), gradients = gradient(params, batch, *given)
    # Whatever the dtype of parameters, sums over parts and moments take float32.
    return optax.tree.cast(gradients, jnp.float32), metrics

  def accumulated(params, batch, *given):
    parts = jax.tree.map(lambda x: _split_rows(x, accumulate), batch)
    first = jax.tree.map(lambda x: x[0], parts)
    shapes = jax.eval_shape(differentiate, params, first, *given)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def add_part(total, part):
      return jax.tree.map(jnp.add, total, differentiate(params, part, *given)), None

    return jax.lax.scan(add_part, zeros, parts)[0]

  def train_step(state: TrainState, batch: Batch, *given: Any) -> tuple[TrainState, Metrics]:
    compute = differentiate if accumulate == 1 else accumulated
    given = given if loss else (state.extra,)
    gradients, metrics = compute(state.params, batch, *given)
    extra = _move_scalars(model, state, metrics, num_steps)
    # The reference adds 1e-6 to the count, which also lets an empty batch pass.
    gradients = jax.tree.map(lambda g: g / (metrics["targets"] + 1e-6), gradients)
    metrics["grad_norm"] = optax.tree.norm(gradients)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    metrics |= update_ratios(groups, state.params, updates)
    params = optax.apply_updates(state.params, updates)
    metrics |= {f"extra/{name}": value for name, value in state.extra.items()}
    return TrainState(state.step + 1, params, opt_state, extra), metrics

  return train_step


def cross_entropy(
  model: nn.Module, params: Any, batch: Batch, scalars: Any
) -> tuple[jax.Array, Metrics]:
  """The usual `Loss` of arrays [B, S]; arguments as of `predict`."""
  metrics = sums(model, params, batch, scalars)
  return metrics["nats"] + metrics.get("other_nats", 0), metrics


def _move_scalars(
  model: nn.Module, state: TrainState, metrics: Metrics, num_steps: int | None
) -> Metrics:
  """`TrainState.extra` of the next step."""
  if not state.extra:
    return {}
  remaining = 1.0 if num_steps is None else jnp.maximum(1 - state.step / num_steps, 0)
  return model.move_scalars(state.extra, metrics, remaining)


def _split_rows(x, parts):
  """[..., B, S] -> [parts, ..., B / parts, S], neighbours in different parts.

  Rows of one device stay on it: part i takes the rows i, i + parts, ...
  """
  *others, _, size = x.shape
  return jnp.moveaxis(x.reshape(*others, -1, parts, size), -2, 0)
