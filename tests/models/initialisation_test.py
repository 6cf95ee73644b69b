"""Fresh parameters: sizes and statistics."""

import dataclasses

import chex
import golden_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forward import foreign_names, init, stack
from golden_cases import SAME

from blt_jax.convert import meta, names
from blt_jax.models import transformer
from blt_jax.models.blt import BLT
from blt_jax.models.byte_lm import ByteLM
from blt_jax.models.config import (
  BLTConfig,
  ByteLMConfig,
  CrossAttentionConfig,
  TransformerConfig,
)


def init_blt(config):
  return init(BLT(config), jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 5), jnp.int32))


def check_statistics(got, stats):
  assert got.keys() == stats.keys()
  for name, want in stats.items():
    chex.assert_shape(got[name], tuple(want["shape"]))
    if want["std"] == 0:
      chex.assert_trees_all_equal(got[name], np.full(want["shape"], want["mean"], np.float32))
      continue
    sampling_error = 5 / np.sqrt(got[name].size)
    assert abs(got[name].std() / want["std"] - 1) < sampling_error, name
    assert abs(got[name].mean()) < sampling_error * want["std"], name
    # Cut at 3 standard deviations, of which 0.9866 remain.
    assert abs(got[name]).max() <= 3 * want["std"] / 0.9866 * (1 + sampling_error), name


@pytest.mark.parametrize("depth_init", ["disabled", "current_depth"])
def test_golden_initialisation(depth_init):
  stats = golden_cases.load_json("init_stats.json")[depth_init]
  config = meta.blt_from_meta(stats["args"])
  entries = names.blt_entries(config, names.META)
  got = foreign_names(entries, init_blt(config))
  prefix = "entropy_model."
  is_entropy = {name: name.startswith(prefix) for name in stats["params"]}
  check_statistics(got, {k: v for k, v in stats["params"].items() if not is_entropy[k]})

  config = ByteLMConfig(stack(96, 2, depth_init=depth_init))
  entries = names.byte_lm_entries(config, names.META, prefix)
  got = foreign_names(entries, init(ByteLM(config), jnp.zeros((1, 4), jnp.int32)))
  check_statistics(got, {k: v for k, v in stats["params"].items() if is_entropy[k]})


@pytest.mark.parametrize(
  "depth_init, factors",
  [
    ("disabled", [1, 1, 1]),
    ("current_depth", [2**0.5, 2, 6**0.5]),
    ("global_depth", [8**0.5] * 3),
    ("dim_ratio", [1 / 64] * 3),
  ],
)
def test_depth_factors(depth_init, factors):
  config = stack(64, 3, depth_init=depth_init)
  stds = [transformer.depth_std(config, layer)(100) for layer in range(3)]
  chex.assert_trees_all_close(np.float32(stds), np.float32(0.1 / np.array(factors)), **SAME)
  config = dataclasses.replace(config, init_std=0.01)
  assert transformer.depth_std(config, 2)(100) == 0.01


def count(model, *inputs):
  shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
  return sum(x.size for x in jax.tree.leaves(shapes))


def test_released_sizes():
  local = dict(dim=1024, num_heads=16, window=512, rope_theta=500_000.0)
  config = BLTConfig(
    encoder=TransformerConfig(num_layers=1, **local),
    latent=TransformerConfig(dim=2048, num_layers=25, num_heads=16, rope_theta=500_000.0),
    decoder=TransformerConfig(num_layers=9, **local),
    encoder_cross=CrossAttentionConfig(16),
    decoder_cross=CrossAttentionConfig(16, all_layers=True),
  )
  assert (config.encoder.mlp_dim, config.latent.mlp_dim) == (2816, 5632)
  tokens, lengths = jnp.zeros((1, 8), jnp.int32), jnp.ones((1, 9), jnp.int32)
  padding = config.hash_rows - 6 * 500_002
  assert padding == 367 * 8192 - 3_000_012
  assert count(BLT(config), tokens, lengths) == 4_533_879_808 + padding * 1024
  entropy = ByteLMConfig(TransformerConfig(dim=768, num_layers=14, num_heads=12, window=512))
  assert count(ByteLM(entropy), tokens) == 99_512_064


@pytest.mark.parametrize(
  "case, fields",
  [(c, f) for c, f in golden_cases.load("primitives") if c["name"] == "ffn_hidden_dim"],
)
def test_golden_mlp_widths(case, fields):
  config = TransformerConfig(
    dim=case["dim"],
    num_layers=1,
    num_heads=1,
    mlp_multiplier=case["ffn_dim_multiplier"] or 1.0,
    mlp_multiple_of=case["multiple_of"],
  )
  assert config.mlp_dim == fields["hidden"]
