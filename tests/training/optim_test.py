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
from forward import TINY
from golden_cases import BFLOAT16

from blt_jax import convert, kinds
from blt_jax.models import init
from blt_jax.models.blt import BLT
from blt_jax.models.config import ByteLMConfig, TransformerConfig
from blt_jax.training import optim, steps
from blt_jax.training import state as train_state

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


@pytest.mark.parametrize(("name", "end"), [("linear", 1.0), ("cosine", 0.1)])
def test_a_run_may_be_all_warm_up(name, end):
  factor = optim.schedule(optim.ScheduleConfig(name=name, warmup_steps=4), 4)
  np.testing.assert_allclose(factor(np.arange(5)), [0, 0.25, 0.5, 0.75, end], rtol=1e-6)


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
  step = steps.make_train_step(BLT(converted.config), optimizer)
  step = jax.jit(chex.assert_max_traces(step, n=1))
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


def test_a_run_begins_at_step_0_with_parameters_of_its_dtype():
  optimizer = optim.adamw(optim.OptimizerConfig(), lambda step: 0.1)
  start = train_state.make_start(BLT(TINY), optimizer, None, param_dtype="bfloat16")
  state = start(jax.random.key(0))
  assert state.step == 0
  assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("bfloat16")}


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


@pytest.mark.parametrize("accumulate", [1, 3])
def test_gradients_of_narrow_parameters_are_summed_in_float32(meta, accumulate):
  converted, data = meta
  keep_gradients = optax.GradientTransformation(
    init=lambda params: params, update=lambda gradients, state, params: (gradients, gradients)
  )
  step = jax.jit(steps.make_train_step(BLT(converted.config), keep_gradients, accumulate))

  def run(dtype):
    params = optax.tree.cast(converted.params, dtype)
    state = train_state.TrainState(jnp.zeros((), jnp.int32), params, params)
    return step(state, _batch(data))[0]

  narrow, wide = run(jnp.bfloat16), run(jnp.float32)
  chex.assert_trees_all_equal_dtypes(narrow.params, optax.tree.cast(wide.params, jnp.bfloat16))
  chex.assert_trees_all_equal_dtypes(narrow.opt_state, wide.opt_state)
  error = optax.tree.norm(jax.tree.map(jnp.subtract, narrow.opt_state, wide.opt_state))
  assert error / optax.tree.norm(wide.opt_state) < BFLOAT16["rtol"]


def test_moments_are_stored_in_their_dtype():
  params = {"w": jnp.ones((4, 8))}
  gradients = jax.random.normal(jax.random.key(0), (6, 4, 8))

  def run(dtype):
    optimizer = optim.adamw(optim.OptimizerConfig(moment_dtype=dtype), lambda step: 1e-2)
    state, updated = optimizer.init(params), params
    for gradient in gradients:
      updates, state = optimizer.update({"w": gradient}, state, updated)
      updated = optax.apply_updates(updated, updates)
    return updated, optax.tree.get_all_with_path(state, "mu") + optax.tree.get_all_with_path(
      state, "nu"
    )

  (want, _), (got, moments) = run("float32"), run("bfloat16")
  assert {x["w"].dtype for _, x in moments} == {jnp.dtype("bfloat16")} and len(moments) == 2
  chex.assert_trees_all_close(got, want, rtol=1e-3)
  assert abs(got["w"] - params["w"]).min() > 1e-3


def test_unknown_dtype_is_named():
  with pytest.raises(ValueError, match="moment_dtype is 'float16'; choose one of.*bfloat16"):
    optim.OptimizerConfig(moment_dtype="float16")


def test_sums_count_bytes_and_patches():
  """One row: BOS a b EOS, then padding; the EOS is a target but no byte."""
  model = kinds.build_model(_tiny_byte_lm())
  params = init.init_params(model, jax.random.key(0))
  params = jax.tree.map(lambda x: jnp.zeros_like(x), nn.meta.unbox(params))
  batch = {
    "tokens": jnp.asarray([[1, 101, 102, 0]]),
    "targets": jnp.asarray([[101, 102, 2, 0]]),
    "loss_mask": jnp.asarray([[True, True, True, False]]),
    "patch_lengths": jnp.asarray([[1, 1, 3, 0]]),
  }
  sums = steps.sums(model, params, batch)
  assert {k: float(v) for k, v in sums.items() if k != "nats"} == {
    "targets": 3, "bytes": 2, "inputs": 3, "patches": 3, "one_byte_patches": 2,
    "byte_slots": 4, "patch_slots": 4, "read_targets": 3, "read_bytes": 2,
  }  # fmt: skip
  np.testing.assert_allclose(sums["nats"], 3 * np.log(260), rtol=1e-6)


def _tiny_byte_lm():
  return ByteLMConfig(TransformerConfig(16, 1, 2, window=4, mlp_multiple_of=8))
