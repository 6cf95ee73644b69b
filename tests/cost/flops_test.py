"""FLOPs against numbers worked out by hand, and against XLA's count of a program."""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blt_jax import config as settings
from blt_jax import kinds
from blt_jax.cost import chips, flops
from blt_jax.models import init
from blt_jax.models.config import (
  BLTConfig,
  BPELMConfig,
  ByteLMConfig,
  CrossAttentionConfig,
  TransformerConfig,
)
from blt_jax.models.end_to_end import EndToEndConfig
from blt_jax.models.megabyte import MegaByteConfig
from blt_jax.models.mixture import MixtureConfig
from blt_jax.models.spacebyte import SpaceByteConfig

# Forward FLOPs per byte at 4.5 bytes per patch and contexts of 8,192 bytes. In millions,
# blt_1b is: latent transformer (MLP 1677.722, projections 838.861, attention 186.516) / 4.5;
# encoder 26.216; decoder 235.948 and output 0.532; cross-attentions 6.063 and 54.581.
PAPER_SIZES = {
  "blt_400m": 381_832_286.8,
  "blt_1b": 924_030_166.9,
  "blt_2b": 1_295_331_505.0,
  "blt_4b": 2_234_150_229.3,
  "blt_8b": 3_341_270_591.2,
}


def _preset(name):
  return settings.make_model_config(
    importlib.import_module(f"configs.{name}").get_config().model
  )


@pytest.mark.parametrize("name", PAPER_SIZES)
def test_papers_sizes_cost_what_the_paper_charges(name):
  assert kinds.flops_per_byte(_preset(name), 4.5, 8192) == pytest.approx(
    PAPER_SIZES[name], rel=1e-9
  )


@pytest.mark.parametrize(
  ("name", "patch_size", "seq_len", "expected"),
  [("blt_1b", 4, 8192, 1_007_271_936.0), ("blt_8b", 6, 16_384, 2_628_489_159.1)],
)
def test_patch_size_and_context(name, patch_size, seq_len, expected):
  value = kinds.flops_per_byte(_preset(name), patch_size, seq_len)
  assert value == pytest.approx(expected, rel=1e-9)


def test_byte_lm_costs_its_stack_and_its_output():
  config = ByteLMConfig(TransformerConfig(dim=64, num_layers=2, num_heads=4, window=9))
  mlp, projections = 2 * 2 * 64 * 2 * 256, 2 * 2 * 64 * 256
  attention, output = 2 * 4 * 64 * (9 + 1) / 2, 2 * 64 * 260
  expected = mlp + projections + attention + output
  assert kinds.flops_per_byte(config, 1.0, 100) == expected
  shorter_than_the_window = expected - 2 * 4 * 64 * 2
  assert kinds.flops_per_byte(config, 1.0, 5) == shorter_than_the_window


def test_bpe_lm_costs_what_its_pieces_cost():
  """By hand: layers 512 x 10, 8,192 pieces of 4 bytes, contexts of 4,096 bytes."""
  config = BPELMConfig(TransformerConfig(dim=512, num_layers=10, num_heads=8))
  mlp, projections = 10 * 2 * 512 * 2 * 2048, 10 * 2 * 512 * 4 * 512
  attention, output = 10 * 4 * 512 * (1024 + 1) / 2, 2 * 512 * 8192
  expected = (mlp + projections + attention + output) / 4
  assert kinds.flops_per_byte(config, 4.0, 4096) == expected
  assert expected == pytest.approx(20.5e6, rel=0.005)
  grouped = dataclasses.replace(config.transformer, num_kv_heads=2)
  cheaper = dataclasses.replace(config, transformer=grouped, tie_embeddings=True)
  saved = 10 * 2 * 512 * 2 * (512 - 128) / 4
  assert kinds.flops_per_byte(cheaper, 4.0, 4096) == expected - saved


def test_model_flops_of_a_bpe_lm_by_hand():
  stack = TransformerConfig(dim=8, num_layers=3, num_heads=4, num_kv_heads=2, mlp_dim=20)
  config = BPELMConfig(stack, vocab_size=50)
  matrices = 10 * (2 * 2 * 8 * 8 + 2 * 2 * 8 * 4 + 3 * 2 * 8 * 20)
  pairs = 10 * 11 // 2
  forward = 3 * (matrices + pairs * 4 * 8) + 10 * 2 * 8 * 50
  assert kinds.model_flops(config, 10, 11) == 3 * forward


def test_impossible_sizes_are_errors():
  with pytest.raises(ValueError, match="patch_size 0.5 and seq_len 8 must be at least 1"):
    kinds.flops_per_byte(_preset("blt_1b"), 0.5, 8)


def test_model_flops_of_a_small_blt_by_hand():
  local = TransformerConfig(dim=8, num_layers=2, num_heads=2, mlp_dim=16, window=3)
  latent = TransformerConfig(dim=12, num_layers=3, num_heads=2, num_kv_heads=1, mlp_dim=32)
  cross = CrossAttentionConfig(num_heads=2)
  everywhere = CrossAttentionConfig(num_heads=2, all_layers=True)
  config = BLTConfig(local, latent, local, cross, everywhere, vectors_per_patch=2)
  seq_len, num_patches = 10, 4
  local_pairs = 1 + 2 + 3 * 8
  local_flops = 2 * (10 * (4 * 2 * 8 * 8 + 3 * 2 * 8 * 16) + local_pairs * 4 * 8)
  latent_pairs = 1 + 2 + 3 + 4
  latent_matrices = 4 * (2 * 2 * 12 * 12 + 2 * 2 * 12 * 6 + 3 * 2 * 12 * 32)
  latent_flops = 3 * (latent_matrices + latent_pairs * 4 * 12)
  bridge = 4 * 2 * (8 * 16 + 16 * 12 + 12 * 16)
  one_crossing = 2 * 2 * 8 * 8 * (8 + 10) + 10 * 2 * 4 * 8
  output = 10 * 2 * 8 * 260
  forward = 2 * local_flops + latent_flops + bridge + (1 + 2) * one_crossing + output
  assert kinds.model_flops(config, seq_len, num_patches) == 3 * forward


_SMALL = TransformerConfig(dim=8, num_layers=2, num_heads=2, mlp_dim=24, window=3)
_WIDE = TransformerConfig(dim=16, num_layers=3, num_heads=2, mlp_dim=40)
_MEGABYTE = MegaByteConfig(
  _WIDE, TransformerConfig(dim=8, num_layers=2, num_heads=2, mlp_dim=24), patch_size=4
)
_SPACEBYTE = SpaceByteConfig(_SMALL, _WIDE, num_patches=5)


def test_the_paper_charges_a_megabyte_a_patch_for_four_bytes():
  """Rows of 24 bytes: 6 patches."""
  wide = 3 * (2 * 2 * 16 * 64 + 4 * 2 * 16 * 16 + 4 * 16 * (6 + 1) / 2)
  local = 2 * (2 * 2 * 8 * 32 + 4 * 2 * 8 * 8 + 4 * 8 * (4 + 1) / 2) + 2 * 8 * 260
  assert kinds.flops_per_byte(_MEGABYTE, 9.0, 24) == wide / 4 + local + 2 * 4 * 8


def test_the_paper_charges_a_spacebyte_by_its_global_positions():
  """Rows of 24 bytes, 4 of them global."""
  local = 2 * (2 * 2 * 8 * 32 + 4 * 2 * 8 * 8 + 4 * 8 * (3 + 1) / 2) + 2 * 8 * 260
  wide = 3 * (2 * 2 * 16 * 64 + 4 * 2 * 16 * 16 + 4 * 16 * (4 + 1) / 2)
  assert kinds.flops_per_byte(_SPACEBYTE, 6.0, 24) == local + wide / 6


def test_model_flops_of_small_baselines_by_hand():
  per_byte = 2 * (4 * 2 * 8 * 8 + 3 * 2 * 8 * 24)
  per_patch = 3 * (4 * 2 * 16 * 16 + 3 * 2 * 16 * 40)
  output = 24 * 2 * 8 * 260
  wide = 6 * per_patch + 3 * (6 * 7 / 2) * 4 * 16
  local = 24 * per_byte + 2 * (6 * 4 * 5 / 2) * 4 * 8
  hand_over = 24 * 2 * 4 * 8
  assert kinds.model_flops(_MEGABYTE, 24, 0) == 3 * (wide + local + hand_over + output)
  wide = 5 * per_patch + 3 * (5 * 6 / 2) * 4 * 16
  local = 24 * per_byte + 2 * (1 + 2 + 3 * 22) * 4 * 8
  assert kinds.model_flops(_SPACEBYTE, 24, 0) == 3 * (wide + local + output)


def _one_layer_each(kind):
  """Nothing is in a loop, which XLA counts once; returns the model's settings, S and P."""
  local = TransformerConfig(dim=64, num_layers=1, num_heads=4, mlp_dim=128)
  near = dataclasses.replace(local, window=8)
  wide = TransformerConfig(dim=128, num_layers=1, num_heads=4, mlp_dim=256)
  cross = CrossAttentionConfig(num_heads=4)
  everywhere = dataclasses.replace(cross, all_layers=True)
  return {
    "blt": (BLTConfig(near, wide, near, cross, everywhere, vectors_per_patch=2), 128, 32),
    # So wide that scores, which the backward pass makes again, hardly count.
    "byte_lm": (ByteLMConfig(wide), 64, 0),
    "bpe_lm": (BPELMConfig(local, vocab_size=1000), 64, 0),
    "megabyte": (MegaByteConfig(wide, local, patch_size=4, max_patches=64), 128, 0),
    "spacebyte": (
      SpaceByteConfig(dataclasses.replace(near, num_layers=2), wide, num_patches=32), 128, 0
    ),
    "mixture": (
      MixtureConfig(
        near, wide, near, cross, everywhere, num_patches=16, finer_attention=True,
        read_finer=True,
      ), 128, 32,
    ),
    "end_to_end": (
      EndToEndConfig(near, wide, near, cross, everywhere, predictor=near, num_patches=32),
      128, 0,
    ),
  }[kind]  # fmt: skip


@pytest.mark.parametrize(
  "kind", ["blt", "byte_lm", "bpe_lm", "megabyte", "spacebyte", "end_to_end", "mixture"]
)
def test_model_flops_are_what_xla_counts(kind):
  """In the forward pass, and with gradients; norms, softmax, activations are in its count."""
  config, seq_len, num_patches = _one_layer_each(kind)
  model = kinds.build_model(config)
  shapes = [(1, seq_len)] + [(1, num_patches)] * (num_patches > 0)
  if kind == "mixture":
    shapes[1] = (2, *shapes[1])
  inputs = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in shapes]

  def loss(params, *inputs):
    return model.apply({"params": params}, *inputs).sum()

  for function, share in ((loss, 1 / 3), (jax.value_and_grad(loss), 1)):
    lowered = jax.jit(function).lower(init.abstract_params(model), *inputs)
    expected = share * kinds.model_flops(config, seq_len, num_patches)
    assert 1 < lowered.cost_analysis()["flops"] / expected < 1.1


def test_the_entropies_of_an_end_to_end_are_charged():
  """A BLT, a byte model with as many outputs as its head has, and the matrix between them."""
  config, seq_len, _ = _one_layer_each("end_to_end")
  config = dataclasses.replace(config, head="backward", backward_bytes=3)
  head = ByteLMConfig(config.predictor, vocab_size=3 * config.vocab_size)
  want = (
    flops.blt_flops_per_byte(config, 4.5, seq_len)
    + flops.byte_lm_flops_per_byte(head, 4.5, seq_len)
    + 2 * 64 * 64
  )
  assert flops.end_to_end_flops_per_byte(config, 4.5, seq_len) == want


def test_the_matrices_of_an_entropy_models_states_are_charged():
  config, seq_len, num_patches = _one_layer_each("blt")
  more = dataclasses.replace(config, entropy_state_dim=32)
  want = 2 * 32 * 64 * 2
  found = [flops.blt_flops_per_byte(c, 4.5, seq_len) for c in (more, config)]
  assert found[0] - found[1] == want
  found = [kinds.model_flops(c, seq_len, num_patches) for c in (more, config)]
  assert found[0] - found[1] == 3 * seq_len * want
  head = dataclasses.replace(config, boundary_weight=1.0)
  assert (
    flops.blt_flops_per_byte(head, 4.5, seq_len)
    - flops.blt_flops_per_byte(config, 4.5, seq_len)
    == 2 * 64
  )


@given(st.integers(1, 60), st.integers(1, 80))
def test_visible_pairs_are_those_of_the_mask(length, window):
  mask = [(q, k) for q in range(length) for k in range(q + 1) if q - k < window]
  assert flops.visible_pairs(length, window) == len(mask)
  assert flops.visible_pairs(length, None) == length * (length + 1) // 2


@pytest.mark.parametrize(
  ("device_kind", "peak"),
  [
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5", 459e12),
    ("TPU v6 lite", 918e12),
    ("TPU7x", 1153.5e12),
    ("NVIDIA H100 80GB HBM3", 989e12),
    ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA H200", 989e12),
    ("NVIDIA A100-SXM4-40GB", 312e12),
    ("cpu", None),
  ],
)
def test_peak_flops_by_jax_name(device_kind, peak):
  assert flops.peak_flops(device_kind) == peak


def test_a_gpu_is_told_from_its_variants():
  assert chips.find_chip("NVIDIA A100-SXM4-80GB").hbm_bytes == 80e9
  assert chips.find_chip("NVIDIA A100-SXM4-40GB").hbm_bytes == 40e9
  assert chips.find_chip("Apple M3") is None
