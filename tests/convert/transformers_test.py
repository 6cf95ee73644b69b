"""Compares converted models with Hugging Face's own, where it is installed."""

import functools

import chex
import numpy as np
import pytest
from golden_cases import FLOAT32

from blt_jax import convert, patching
from blt_jax.models.blt import BLT
from blt_jax.models.byte_lm import ByteLM
from blt_jax.ops import losses

torch = pytest.importorskip("torch", reason="the comparison needs torch")
transformers = pytest.importorskip("transformers", reason="the comparison needs transformers")
blt = pytest.importorskip(
  "transformers.models.blt", reason="this version of transformers has no BLT"
)

SEQ_LEN = 24


def stack(dim, num_layers, heads=4, **changes):
  return dict(
      hidden_size=dim, num_hidden_layers=num_layers, num_attention_heads=heads,
      num_key_value_heads=heads, intermediate_size=48, max_position_embeddings=64,
      rope_parameters=dict(rope_type="default", rope_theta=500_000.0), **changes,
  )  # fmt: skip


def settings(**changes):
  """Arguments of a small `BltConfig`."""
  arguments = dict(
      encoder=dict(), decoder=dict(), latent=dict(), slots=2, dim_global=32,
      all_encoder_layers=False, all_decoder_layers=True, encoder_layers=1,
      decoder_layers=2, tied=False, functions=1, window=6,
  ) | changes  # fmt: skip
  local = dict(cross_attn_k=arguments["slots"], hidden_size_global=arguments["dim_global"])
  encoder = stack(16, arguments["encoder_layers"], **local)
  encoder["cross_attn_all_layers"] = arguments["all_encoder_layers"]
  decoder = stack(16, arguments["decoder_layers"], **local)
  decoder["cross_attn_all_layers"] = arguments["all_decoder_layers"]
  return dict(
    cross_attn_k=arguments["slots"],
    local_attention_window_len=arguments["window"],
    encoder_hash_byte_group_size=[3, 5],
    encoder_hash_byte_group_vocab=61,
    encoder_hash_byte_group_nb_functions=arguments["functions"],
    tie_word_embeddings=arguments["tied"],
    use_cache=False,
    encoder_config=encoder | arguments["encoder"],
    decoder_config=decoder | arguments["decoder"],
    global_config=stack(arguments["dim_global"], 2) | arguments["latent"],
    patcher_config=stack(16, 1, vocab_size=260, sliding_window=arguments["window"]),
  )


SCALED = dict(
  rope_parameters=dict(
    rope_type="llama3", rope_theta=500_000.0, factor=8.0, low_freq_factor=1.0,
    high_freq_factor=4.0, original_max_position_embeddings=4,
  )
)  # fmt: skip
GROUPED = dict(num_key_value_heads=2)
SETTINGS = {
  "one vector": settings(slots=1, dim_global=16),
  "two vectors": settings(),
  "four vectors": settings(slots=4, dim_global=64),
  "projected": settings(slots=4, dim_global=32),
  "deep encoder": settings(encoder_layers=3, all_encoder_layers=True),
  "deep encoder, read once": settings(encoder_layers=2),
  "decoder reads once": settings(all_decoder_layers=False),
  "grouped heads": settings(encoder=GROUPED, decoder=GROUPED, latent=GROUPED),
  "tied, with a longer context": settings(tied=True, latent=SCALED),
  "no window": settings(window=None),
  "two functions": settings(functions=2),
}


@functools.cache
def models(name):
  """Their model, with random weights, and ours."""
  torch.manual_seed(0)
  model = blt.BltForCausalLM(blt.BltConfig(**SETTINGS[name])).eval()
  with torch.no_grad():
    for key, parameter in model.named_parameters():
      is_norm = parameter.ndim == 1
      parameter.normal_(1.0 if is_norm else 0.0, 0.1 if is_norm else 0.2)
      if ".patcher." in key and not is_norm:
        parameter.mul_(2)
  return model, convert.from_hf_state(model.config.to_dict(), state_of(model))


def state_of(model):
  return {name: value.detach().numpy() for name, value in model.state_dict().items()}


def theirs(model, tokens, **arguments):
  with torch.no_grad():
    return model(input_ids=torch.tensor(tokens), use_cache=False, **arguments).logits.numpy()


def random_tokens():
  return np.random.default_rng(0).integers(0, 260, (2, SEQ_LEN))


def ours(converted, tokens, lengths):
  return np.asarray(BLT(converted.config).apply({"params": converted.params}, tokens, lengths))


LENGTHS = np.array([[1, 3, 5, 1, 2, 6, 7], [1, 1, 1, 12, 10, 0, 0]])
each_setting = pytest.mark.parametrize("name", SETTINGS)


@each_setting
def test_logits_of_given_patches(name):
  model, converted = models(name)
  tokens = random_tokens()
  want = theirs(model, tokens, patch_lengths=torch.tensor(LENGTHS))
  assert want.std() > 0.1
  chex.assert_trees_all_close(ours(converted, tokens, LENGTHS), want, **FLOAT32)


def entropies_of(converted, tokens):
  logits = ByteLM(converted.entropy_config).apply({"params": converted.entropy_params}, tokens)
  return np.asarray(losses.entropy_nats(logits))


@each_setting
def test_logits_of_own_patches(name):
  model, converted = models(name)
  tokens = random_tokens()
  entropies = entropies_of(converted, tokens)
  ordered = np.sort(entropies.reshape(-1))
  widest = 15 + np.argmax(np.diff(ordered[15:-15]))
  threshold = float(ordered[widest : widest + 2].mean())  # far from every entropy
  rule = patching.PatchingConfig(threshold=threshold)
  lengths = patching.patch_lengths(tokens.astype(np.int32), rule, entropies)
  assert 3 < lengths.shape[1] <= SEQ_LEN
  model.config.patching_threshold = threshold
  model.model.config.patching_threshold = threshold
  want = theirs(model, tokens)
  chex.assert_trees_all_close(ours(converted, tokens, lengths), want, **FLOAT32)


@each_setting
def test_written_models_load(name, tmp_path):
  model, converted = models(name)
  convert.to_hf(tmp_path, converted)
  loaded, report = blt.BltForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
  assert not report["missing_keys"] and not report["unexpected_keys"]
  tokens = random_tokens()
  lengths = torch.tensor(LENGTHS)
  want = theirs(model, tokens, patch_lengths=lengths)
  got = theirs(loaded.eval(), tokens, patch_lengths=lengths)
  chex.assert_trees_all_close(got, want, **FLOAT32)
