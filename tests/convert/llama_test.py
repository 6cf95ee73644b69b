"""Llamas of Hugging Face: the same hidden states from the same embeddings, and refusals."""

import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import FLOAT32

from blt_jax import convert
from blt_jax.convert import llama
from blt_jax.models.byte_lm import ByteLM
from blt_jax.models.config import BPELMConfig
from blt_jax.models.init import abstract_params
from blt_jax.models.transformer import Transformer
from blt_jax.ops import norm, rope

torch = pytest.importorskip("torch", reason="the comparison needs torch")
transformers = pytest.importorskip("transformers", reason="the comparison needs transformers")

LENGTH = 100  # positions, far beyond the old context of those that scale frequencies
_SCALED = dict(
  rope_type="llama3", rope_theta=500_000.0, factor=8.0, low_freq_factor=1.0,
  high_freq_factor=4.0, original_max_position_embeddings=16,
)  # fmt: skip
FAMILIES = {
  "llama 2": dict(rope_parameters=dict(rope_type="default", rope_theta=10_000.0)),
  "llama 3.1": dict(num_key_value_heads=2, rope_parameters=_SCALED),
  "llama 3.2": dict(
    num_key_value_heads=1, tie_word_embeddings=True, rope_parameters=_SCALED | dict(factor=32.0)
  ),
  "smollm2": dict(num_key_value_heads=2, tie_word_embeddings=True, rms_norm_eps=1e-5),
  "heads of their own": dict(head_dim=24),
  "mistral": dict(num_key_value_heads=2, sliding_window=7),
}
each_family = pytest.mark.parametrize("name", FAMILIES)


@functools.cache
def reference(name):
  """A random Llama of a family's shape."""
  torch.manual_seed(0)
  kind = "Mistral" if name == "mistral" else "Llama"
  settings = dict(
    vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=128,
    initializer_range=0.1,
  ) | FAMILIES[name]  # fmt: skip
  config = getattr(transformers, f"{kind}Config")(**settings)
  return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
  """The folder of a family, as `save_pretrained` writes it."""

  @functools.cache
  def save(name):
    folder = tmp_path_factory.mktemp("llama")
    reference(name).save_pretrained(folder)
    return folder

  return save


@each_family
def test_hidden_states_are_those_of_transformers(name, folder_of):
  model = reference(name)
  config, params = convert.from_llama(folder_of(name))
  x = np.random.default_rng(0).normal(size=(2, LENGTH, config.dim)).astype(np.float32)
  with torch.no_grad():
    want = model.model(inputs_embeds=torch.tensor(x), use_cache=False).last_hidden_state
  hidden = Transformer(config).apply({"params": params}, jnp.asarray(x), None)
  scale = model.model.norm.weight.detach().numpy()
  got = norm.rms_norm(hidden, jnp.asarray(scale), config.norm_epsilon)
  assert want.std() > 0.5
  chex.assert_trees_all_close(np.asarray(got), want.numpy(), **FLOAT32)


@each_family
def test_the_whole_model_is_planned(name, folder_of):
  plan = convert.plan_llama(folder_of(name))
  shapes = jax.tree.map(np.shape, plan.params())
  whole = jax.tree.map(np.shape, abstract_params(ByteLM(plan.config)))
  assert shapes == whole
  assert plan.config.tie_embeddings == FAMILIES[name].get("tie_word_embeddings", False)


def test_scaled_frequencies_by_hand():
  """Pairs of heads of 4 turn once in 6.3 and in 63 positions, with an old context of 40."""
  scaling = rope.Scaling(8.0, 1.0, 4.0, old_context=40)
  cos, sin = rope.rope_angles(jnp.array([1]), 4, 100.0, scaling)
  turns = np.array([40, 4]) / (2 * np.pi)
  assert turns[0] > 4 and turns[1] < 1
  np.testing.assert_allclose(np.arctan2(sin, cos).ravel(), [1.0, 0.1 / 8], rtol=1e-5)
  between = rope.rope_angles(jnp.array([1]), 2, 100.0, rope.Scaling(8.0, 1.0, 4.0, 16))
  kept = (16 / (2 * np.pi) - 1) / 3
  angle = np.arctan2(between[1], between[0]).item()
  np.testing.assert_allclose(angle, kept + (1 - kept) / 8, rtol=1e-5)


def test_without_output_matrix(tmp_path):
  """A base model's names have no prefix."""
  reference("llama 3.1").model.save_pretrained(tmp_path)
  config, params = convert.from_llama(tmp_path)
  assert config.num_kv_heads == 2 and config.rope_scaling.old_context == 16
  assert params["layers"]["attention"]["key"]["kernel"].shape == (3, 64, 32)


def test_large_models_are_whole_by_name_and_shape():
  """Llama 3.1 8B, without an array."""
  config = json.loads(
    '{"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,'
    '"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,'
    '"vocab_size": 128256, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,'
    '"rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,'
    '"original_max_position_embeddings": 8192, "rope_type": "llama3"}}'
  )
  with torch.device("meta"):
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
  arrays = {k: np.broadcast_to(np.float32(0), v.shape) for k, v in theirs.state_dict().items()}
  plan = llama.plan_model(config, arrays)
  assert plan.config == BPELMConfig(plan.config.transformer, 128_256)
  assert plan.config.transformer.rope_scaling == rope.Scaling(8.0, 1.0, 4.0, 8192)
  assert sum(np.prod(shape) for shape in plan.shapes.values()) == 8_030_261_248
  del arrays["model.layers.31.mlp.up_proj.weight"]
  with pytest.raises(ValueError, match="missing: model.layers.31.mlp.up_proj.weight"):
    llama.plan_model(config, arrays)


@pytest.mark.parametrize(
  "changes, message",
  [
    (dict(model_type="qwen2"), "model_type 'qwen2'; only"),
    (dict(model_type=None), "model_type None; only"),
    (dict(attention_bias=True), "attention_bias True, and our blocks know False"),
    (dict(hidden_act="gelu"), "hidden_act 'gelu'"),
    (dict(rope_parameters=dict(rope_type="yarn", factor=2.0)), "rope_type 'yarn' is not known"),
    (dict(rope_scaling=dict(type="linear", factor=2.0)), "rope_type 'linear' is not known"),
    (
      dict(rope_parameters=dict(rope_type="llama3", factor=2.0)),
      "llama3 lacks low_freq_factor",
    ),
    (dict(partial_rotary_factor=0.5), "partial_rotary_factor is 0.5"),
    (dict(hidden_size=None), "lacks hidden_size"),
    (dict(quantization_config=dict(bits=4)), "quantization_config"),
    (dict(hidden_size="64"), "hidden_size '64'; it must be a whole number >= 1"),
    (dict(num_hidden_layers=True), "num_hidden_layers True; it must be a whole number"),
    (dict(rms_norm_eps=None), "rms_norm_eps None; it must be a number > 0"),
    (dict(rope_parameters=dict(rope_theta="1e4")), "rope_parameters.rope_theta '1e4'; it must"),
    (dict(rope_scaling="linear"), "rope_scaling 'linear'; it must be an object"),
  ],
)
def test_what_our_blocks_do_not_have_is_refused_by_name(changes, message):
  config = reference("llama 2").config.to_dict() | changes
  with pytest.raises(ValueError, match=message):
    llama.config_from_llama(config)


@pytest.mark.parametrize("kind", ["Llama", "Mistral"])
def test_what_a_file_does_not_say_is_as_in_transformers(kind):
  sizes = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=1, vocab_size=300)
  theirs = getattr(transformers, f"{kind}Config")(**sizes, num_attention_heads=8)
  stated = dict(model_type=theirs.model_type, num_attention_heads=8)
  ours = llama.config_from_llama(sizes | stated).transformer
  assert ours == llama.config_from_llama(theirs.to_dict()).transformer
  assert ours.window == getattr(theirs, "sliding_window", None)


def test_arrays_of_other_blocks_are_refused_by_name(folder_of):
  config = reference("llama 2").config.to_dict()
  arrays = {k: v.detach().numpy() for k, v in reference("llama 2").state_dict().items()}
  arrays["model.layers.0.self_attn.q_proj.bias"] = np.zeros(64, np.float32)
  with pytest.raises(ValueError, match=r"not expected: model.layers.0.self_attn.q_proj.bias"):
    llama.plan_blocks(config, arrays)
