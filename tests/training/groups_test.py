"""Groups of parameters: rates and decays of their own, frozen, thawed, and misspelt."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from blt_jax import config as settings
from blt_jax.runs import folder
from blt_jax.training import optim
from blt_jax.training.groups import Group, update_ratios

CONFIG = optim.OptimizerConfig(learning_rate=0.5, clip_norm=1e9)


def _params():
  return {"latent": {"up": jnp.ones(3), "norm": jnp.full(2, 2.0)}, "decoder": jnp.full(4, 3.0)}


def _gradient(step, x):
  return 0.1 * (step + 1) * jnp.arange(1.0, len(x) + 1)


def _run(groups, steps=3, config=CONFIG):
  """Parameters after each step, from gradients that differ by step, and the last state."""
  optimizer = optim.adamw(config, lambda step: jnp.float32(config.learning_rate), groups)
  params = _params()
  state, found = optimizer.init(params), []
  for step in range(steps):
    gradients = jax.tree.map(functools.partial(_gradient, step), params)
    updates, state = optimizer.update(gradients, state, params)
    params = optax.apply_updates(params, updates)
    found.append(params)
  return found, state


def test_scales_are_those_of_another_optimizer():
  got, _ = _run([Group("latent/*", learning_rate_scale=0.1, weight_decay_scale=3.0)])
  slow = optim.OptimizerConfig(learning_rate=0.05, weight_decay=0.3, clip_norm=1e9)
  want, _ = _run((), config=slow)
  plain, _ = _run(())
  chex.assert_trees_all_close(got[-1]["latent"], want[-1]["latent"], rtol=1e-6)
  chex.assert_trees_all_close(got[-1]["decoder"], plain[-1]["decoder"], rtol=1e-6)


def test_the_first_pattern_counts():
  got, _ = _run([Group("latent/norm", freeze=True), Group("latent/*", 0.0)])
  chex.assert_trees_all_equal(got[-1]["latent"], _params()["latent"])
  assert not np.array_equal(got[-1]["decoder"], _params()["decoder"])


def test_frozen_arrays_have_no_state_and_no_part_in_the_norm():
  _, state = _run([Group("latent/*", freeze=True)])
  assert sorted(x.size for x in jax.tree.leaves(state) if x.ndim) == [4, 4]
  clipped = optim.OptimizerConfig(learning_rate=0.5, clip_norm=0.1)
  got, _ = _run([Group("latent/*", freeze=True)], 1, clipped)
  alone = optim.adamw(clipped, lambda step: jnp.float32(0.5))
  decoder = _params()["decoder"]
  update, _ = alone.update(0.1 * jnp.arange(1.0, 5), alone.init(decoder), decoder)
  chex.assert_trees_all_close(got[0]["decoder"], decoder + update, rtol=1e-6)


def test_thawed_arrays_learn_from_their_step_with_all_their_gradients():
  got, state = _run([Group("latent/*", thaw=2)])
  plain, whole = _run(())
  chex.assert_trees_all_equal(got[1]["latent"], _params()["latent"])
  assert not np.array_equal(got[2]["latent"]["up"], _params()["latent"]["up"])
  sizes = [sorted(x.size for x in jax.tree.leaves(s) if x.ndim) for s in (state, whole)]
  assert sizes[0] == sizes[1]
  means = [[x for x in jax.tree.leaves(s) if x.shape == (3,)] for s in (state, whole)]
  chex.assert_trees_all_close(*means, rtol=1e-6)


def test_updates_are_measured_by_group():
  params = _params()
  updates = jax.tree.map(functools.partial(_gradient, 0), params)
  groups = [Group("latent/norm"), Group("latent/*", learning_rate_scale=0.5)]
  found = update_ratios(groups, params, updates)
  want = {
    "update_ratio/latent/norm": np.sqrt(0.01 + 0.04) / np.sqrt(8),
    "update_ratio/latent/*": np.sqrt(0.01 + 0.04 + 0.09) / np.sqrt(3),
    "update_ratio/rest": np.sqrt(0.01 + 0.04 + 0.09 + 0.16) / 6,
  }
  chex.assert_trees_all_close(found, want, rtol=1e-6)
  assert update_ratios((), params, updates) == {}


def test_parameters_that_carry_names_are_found_too():
  boxed = {"latent": nn.LogicallyPartitioned(jnp.ones(3), ("norm",)), "decoder": jnp.ones(2)}
  optimizer = optim.adamw(CONFIG, lambda step: 0.5, [Group("latent", freeze=True)])
  states = [optimizer.init(p) for p in (boxed, nn.meta.unbox(boxed))]
  assert jax.tree.structure(nn.meta.unbox(states[0])) == jax.tree.structure(states[1])


def test_the_first_pattern_counts_in_settings_too(tmp_path):
  """A ConfigDict sorts its names where it is copied, and where it is read."""
  config = settings.get_config("byte_lm")
  config.workdir = str(tmp_path)
  config.optimizer.groups = {"output/*": {"thaw": 3}, "*": {"learning_rate_scale": 0.5}}
  frozen = settings.freeze(config)
  folder.save_config(tmp_path, frozen)
  for each in (config, frozen, settings.freeze(frozen), folder.load_config(tmp_path)):
    assert [group.pattern for group in settings.make_groups(each)] == ["output/*", "*"]


@pytest.mark.parametrize(
  "groups, message",
  [
    ({"latnet/*": {"freeze": True}}, r"\['latnet/\*'\] matches no parameter .* latent"),
    ({"*": {"thaw": 1}, "latent/*": {"freeze": True}}, r"\['latent/\*'\] matches no parameter"),
    ({"latent/*": {"learning_rate_scale": -1.0}}, "learning_rate_scale -1.0; it must be"),
    ({"latent/*": {"freeze": True, "weight_decay_scale": 0.0}}, "scales would do nothing"),
    ({"latent/*": {"rate": 1.0}}, r"Group has no \['rate'\]"),
    ({"latent/*": 0.1}, "is 0.1; it must be a dict"),
    ({"latent/*": {"learning_rate_scale": "0.1"}}, "learning_rate_scale '0.1'; it must be"),
    ({"latent/*": {"freeze": "False"}}, "freeze 'False'; it must be True or False"),
    ({"latent/*": {"thaw": 1.5}}, "thaw 1.5; it must be a step"),
    ({"*": {"freeze": True}}, "freezes all parameters"),
  ],
)
def test_groups_that_make_no_sense(groups, message):
  config = settings.get_config("byte_lm")
  config.optimizer.groups.update(groups)
  with pytest.raises(ValueError, match=message):
    settings.make_optimizer(config)[0].init(_params())
