"""Schedules and updates against the reference."""

import json

import chex
import flax.linen as nn
import golden_cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy

from blt_jax import convert, optim, steps, train_state
from blt_jax.models.blt import BLT
from blt_jax.models.config import ByteLMConfig, TransformerConfig

_NAMES = {
  "scheduler": "name", "warmup": "warmup_steps", "lr_min_ratio": "min_ratio",
  "exp_factor": "exponent",
}  # fmt: skip


def _schedule_config(args):
  known = optim.ScheduleConfig.__dataclass_fields__
  renamed = {_NAMES.get(k, k): v for k, v in args.items()}
  return optim.ScheduleConfig(**{k: v for k, v in renamed.items() if k in known})


def test_golden_schedules():
  cases = golden_cases.load("optim_cases")
  assert len(cases) == 8
  for case, fields in cases:
    factor = optim.schedule(_schedule_config(case["args"]), case["n_steps"])
    chex.assert_trees_all_close(
      np.asarray(factor(fields["steps"])), fields["factor"].astype(np.float32), atol=1e-6
    )


def test_unknown_schedule_is_named():
  with pytest.raises(ValueError, match="'cosin'.*cosine"):
    optim.ScheduleConfig(name="cosin")


@pytest.fixture(name="meta")
def _meta():
  folder = golden_cases.GOLDEN / "meta_tiny"
  args = json.loads((folder / "args.json").read_text())
  arrays = safetensors.numpy.load_file(folder / "model.safetensors")
  return convert.from_meta_state(args["model"], arrays), np.load(folder / "io.npz")


def _batch(data):
  batch = {"tokens": "x", "targets": "y", "loss_mask": "mask", "patch_lengths": "patch_lengths"}
  return {
    ours: jnp.asarray(data[theirs], bool if ours == "loss_mask" else np.int32)
    for ours, theirs in batch.items()
  }


def test_six_golden_updates(meta):
  converted, data = meta
  args = json.loads(str(data["train_args_json"]))
  config = optim.OptimizerConfig(
    learning_rate=args["lr"], beta1=args["beta1"], beta2=args["beta2"],
    epsilon=args["epsilon"], weight_decay=args["weight_decay"], clip_norm=args["clip"],
  )  # fmt: skip
  rate = optim.learning_rate(config, _schedule_config(args), args["n_steps"])
  optimizer = optim.adamw(config, rate)
  step = jax.jit(steps.make_train_step(BLT(converted.config), optimizer))
  params = converted.params
  state = train_state.TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
  for i, (loss, grad_norm, lr) in enumerate(data["train_loss_gradnorm_lr"]):
    state, metrics = step(state, _batch(data))
    np.testing.assert_allclose(float(rate(i)), lr, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(
      metrics["nats"] / (metrics["targets"] + 1e-6), loss, atol=1e-4, rtol=1e-4
    )
    np.testing.assert_allclose(metrics["grad_norm"], grad_norm, rtol=1e-3)
  assert int(state.step) == 6


def test_accumulated_parts_equal_one_batch(meta):
  converted, data = meta
  model, batch = BLT(converted.config), _batch(data)
  optimizer = optax.sgd(1.0)
  params = converted.params
  state = train_state.TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
  whole, whole_metrics = jax.jit(steps.make_train_step(model, optimizer))(state, batch)
  parts, part_metrics = jax.jit(steps.make_train_step(model, optimizer, 3))(state, batch)
  chex.assert_trees_all_close(whole.params, parts.params, atol=1e-6)
  chex.assert_trees_all_close(whole_metrics, part_metrics, rtol=1e-5)


def test_sums_count_bytes_and_patches():
  """One row: BOS a b EOS, then padding; the EOS is a target but no byte."""
  model = train_state.build_model(_tiny_byte_lm())
  params = train_state.init_params(model, jax.random.key(0))
  params = jax.tree.map(lambda x: jnp.zeros_like(x), nn.meta.unbox(params))
  batch = {
    "tokens": jnp.asarray([[1, 101, 102, 0]]),
    "targets": jnp.asarray([[101, 102, 2, 0]]),
    "loss_mask": jnp.asarray([[True, True, True, False]]),
    "patch_lengths": jnp.asarray([[1, 1, 3, 0]]),
  }
  sums = steps.sums(model, params, batch)
  assert {k: float(v) for k, v in sums.items() if k != "nats"} == {
    "targets": 3, "bytes": 2, "inputs": 3, "patches": 3, "byte_slots": 4, "patch_slots": 4,
  }  # fmt: skip
  np.testing.assert_allclose(sums["nats"], 3 * np.log(260), rtol=1e-6)


def _tiny_byte_lm():
  return ByteLMConfig(TransformerConfig(16, 1, 2, window=4, mlp_multiple_of=8))
