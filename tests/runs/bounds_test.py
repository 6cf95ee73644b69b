"""Every setting has bounds, and what lies outside them is one clear error."""

import math

import pytest
from tiny_runs import tiny_config

from blt_jax import config as settings
from blt_jax.kinds import KINDS
from blt_jax.runs import bounds


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_and_name_has_a_row_and_defaults_lie_inside(kind):
  config = settings.get_config(kind)
  for name, value in bounds.settings_of(config):
    bound = bounds.bound_of(name)
    if isinstance(value, int | float) and not isinstance(value, bool):
      assert bound is not None, name
  bounds.check(config)


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("data.heldout_fraction", 1.0),
    ("data.heldout_fraction", -0.1),
    ("data.heldout_fraction", math.nan),
    ("data.batch_size", 0),
    ("data.batch_size", 10**12),
    ("data.pool_size", 10**12),
    ("data.seq_len", 1),
    ("optimizer.learning_rate", -1.0),
    ("optimizer.learning_rate", math.nan),
    ("optimizer.clip_norm", 0.0),
    ("optimizer.beta1", 1.0),
    ("optimizer.beta2", 2.0),
    ("optimizer.accumulate", 0),
    ("schedule.warmup_steps", -1),
    ("schedule.min_ratio", 2.0),
    ("model.latent.dim", 0),
    ("model.latent.num_layers", -1),
    ("model.encoder.num_heads", 0),
    ("model.dtype", "float31"),
    ("model.hash_sizes", (3, 0)),
    ("checkpoint.keep", 0),
    ("eval.max_batches", 0),
    ("eval.every_steps", 0),
    ("mesh.fsdp", 0),
    ("num_steps", 0),
    ("seed", -1),
  ],
)
def test_what_lies_outside_is_named_with_its_rule(name, value):
  config = tiny_config("blt")
  config.update_from_flattened_dict({name: value})
  with pytest.raises(ValueError, match=f"config.{name} is .*; it must (lie in|be one of)"):
    bounds.check(config)


@pytest.mark.parametrize(
  ("name", "value", "error"),
  [
    ("patching.split_first", False, "no model reads"),
    ("patching.scheme", "lookup", "lookup scheme"),
  ],
)
def test_settings_that_nobody_would_read_are_refused(name, value, error):
  config = tiny_config("blt")
  config.update_from_flattened_dict({name: value})
  with pytest.raises(ValueError, match=error):
    bounds.check(config)
