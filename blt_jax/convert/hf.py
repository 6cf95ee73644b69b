"""Configurations of Hugging Face's BLT as ours, and back."""

from collections.abc import Mapping
from typing import Any

from blt_jax.convert import fields, rotary
from blt_jax.models.config import (
  BLTConfig,
  ByteLMConfig,
  CrossAttentionConfig,
  TransformerConfig,
)
from blt_jax.patching import PatchingConfig

_HF_STACKS: dict[str, dict[str, Any]] = {  # defaults of the classes in configuration_blt.py
    "encoder": dict(hidden_size=1024, num_hidden_layers=1, num_attention_heads=16,
                    intermediate_size=None, cross_attn_all_layers=False),
    "global": dict(hidden_size=2048, num_hidden_layers=25, num_attention_heads=16,
                   intermediate_size=5632),
    "decoder": dict(hidden_size=1024, num_hidden_layers=9, num_attention_heads=16,
                    intermediate_size=2816, cross_attn_all_layers=True),
    "patcher": dict(hidden_size=768, num_hidden_layers=14, num_attention_heads=12,
                    intermediate_size=2048, sliding_window=512, vocab_size=260),
}  # fmt: skip
_HF_TOP = dict(
    vocab_size=260, patch_in_forward=True, patching_mode="entropy", max_patch_length=None,
    patching_threshold=PatchingConfig.threshold, local_attention_window_len=512,
    cross_attn_k=2, encoder_hash_byte_group_size=None, tie_word_embeddings=False,
    encoder_hash_byte_group_vocab=500_002, encoder_hash_byte_group_nb_functions=1,
)  # fmt: skip


def blt_from_hf(config: Mapping[str, Any]) -> BLTConfig:
  """Reads Hugging Face's `BltConfig`.

  Raises:
    ValueError: a setting that has no counterpart here.
  """
  fields.check(config)
  c = {**_HF_TOP, **config}
  window = c["local_attention_window_len"]
  encoder, decoder = _hf_section(c, "encoder"), _hf_section(c, "decoder")
  return BLTConfig(
    encoder=_hf_stack(encoder, window),
    latent=_hf_stack(_hf_section(c, "global"), None),
    decoder=_hf_stack(decoder, window),
    encoder_cross=_hf_cross(encoder),
    decoder_cross=_hf_cross(decoder),
    vectors_per_patch=c["cross_attn_k"],
    repool=True,
    hash_sizes=tuple(c["encoder_hash_byte_group_size"] or range(3, 9)),
    hash_vocab_size=c["encoder_hash_byte_group_vocab"],
    hash_functions=c["encoder_hash_byte_group_nb_functions"],
    vocab_size=c["vocab_size"],
    document_masks=False,
    latent_document_masks=False,
    hash_document_masks=False,
    cross_document_masks=False,
    tie_embeddings=c["tie_word_embeddings"],
  )


def byte_lm_from_hf(config: Mapping[str, Any]) -> ByteLMConfig | None:
  """Reads the patcher of Hugging Face's `BltConfig`; None where the model has none."""
  c = {**_HF_TOP, **config}
  if not c["patch_in_forward"]:
    return None
  patcher = _hf_section(c, "patcher")
  stack = _hf_stack(patcher, patcher["sliding_window"])
  return ByteLMConfig(stack, patcher["vocab_size"], document_masks=False)


def patching_from_hf(config: Mapping[str, Any]) -> PatchingConfig:
  """Reads the patching of Hugging Face's `BltConfig`."""
  c = {**_HF_TOP, **config}
  by_entropy = c["patching_mode"] == "entropy" and c["patch_in_forward"]
  return PatchingConfig(
    scheme="entropy" if by_entropy else "byte",
    threshold=c["patching_threshold"],
    max_patch_length=c["max_patch_length"],
  )


def _hf_section(config, name) -> dict[str, Any]:
  theta = 10_000.0 if name == "patcher" else 500_000.0
  section = {**_HF_STACKS[name], **(config.get(f"{name}_config") or {})}
  try:
    section["rope_theta"], section["rope_scaling"] = rotary.read(section, theta)
    if section.get("hidden_act", "silu") != "silu":
      raise ValueError(f"hidden_act is {section['hidden_act']!r}.")
  except ValueError as error:
    raise ValueError(
      f"{name}_config: only rope_type default or llama3 and hidden_act silu are known; {error}"
    ) from None
  return section


def _hf_stack(section, window) -> TransformerConfig:
  dim = section["hidden_size"]
  return TransformerConfig(
    dim=dim,
    num_layers=section["num_hidden_layers"],
    num_heads=section["num_attention_heads"],
    num_kv_heads=section.get("num_key_value_heads") or 0,
    mlp_dim=section["intermediate_size"] or int(8 * dim / 3),
    window=window,
    norm_epsilon=section.get("rms_norm_eps", 1e-5),
    rope_theta=section["rope_theta"],
    rope_scaling=section["rope_scaling"],
  )


def _hf_cross(section) -> CrossAttentionConfig:
  return CrossAttentionConfig(
    num_heads=section["num_attention_heads"],
    num_kv_heads=section.get("num_key_value_heads") or 0,
    all_layers=section["cross_attn_all_layers"],
  )


def to_hf(
  config: BLTConfig, entropy_config: ByteLMConfig | None, patching: PatchingConfig | None
) -> dict[str, Any]:
  """Writes a `BltConfig` as a dict.

  Document masks have no counterpart there: outputs agree on single documents.

  Raises:
    ValueError: what Hugging Face's model cannot express.
  """
  if obstacles := _obstacles(config, entropy_config, patching):
    raise ValueError(f"Hugging Face's BLT has no counterpart for: {', '.join(obstacles)}.")
  c = config
  assert c.encoder_cross and c.decoder_cross  # one of the obstacles
  local = dict(cross_attn_k=c.vectors_per_patch, hidden_size_global=c.latent.dim,
               vocab_size=c.vocab_size)  # fmt: skip
  by_entropy = patching is None or patching.scheme == "entropy"
  result = dict(
      architectures=["BltForCausalLM"],
      model_type="blt",
      vocab_size=c.vocab_size,
      patch_in_forward=entropy_config is not None,
      patching_mode="entropy" if by_entropy else "byte",
      patching_threshold=(patching or PatchingConfig()).threshold,
      max_patch_length=patching and patching.max_patch_length,
      local_attention_window_len=c.encoder.window,
      cross_attn_k=c.vectors_per_patch,
      encoder_hash_byte_group_size=list(c.hash_sizes),
      encoder_hash_byte_group_vocab=c.hash_vocab_size,
      encoder_hash_byte_group_nb_functions=c.hash_functions,
      tie_word_embeddings=c.tie_embeddings,
      use_cache=False,  # a cached forward pass of BLT raises in transformers 5.23
      encoder_config=dict(
          **_stack_to_hf(c.encoder), **local,
          cross_attn_all_layers=c.encoder_cross.all_layers),
      decoder_config=dict(
          **_stack_to_hf(c.decoder), **local,
          cross_attn_all_layers=c.decoder_cross.all_layers),
      global_config=_stack_to_hf(c.latent),
  )  # fmt: skip
  if entropy_config is not None:
    transformer = entropy_config.transformer
    result["patcher_config"] = dict(
        **_stack_to_hf(transformer), vocab_size=entropy_config.vocab_size,
        sliding_window=transformer.window)  # fmt: skip
  return result


def _obstacles(config, entropy_config, patching) -> list[str]:
  """What Hugging Face's model cannot express."""
  c = config
  stacks = [c.encoder, c.latent, c.decoder]
  stacks += [entropy_config.transformer] if entropy_config else []
  cross = (c.encoder_cross, c.decoder_cross)
  refines = c.encoder_cross and c.encoder_cross.all_layers and c.encoder.num_layers > 1
  found = {
      "a model without cross-attention": None in cross,
      "cross-attention windows": any(x and (x.window or 1) > 1 for x in cross),
      f"pooling {c.pooling!r}": c.pooling != "max",
      "patches refined over several encoder layers": refines and not c.repool,
      "frequency n-gram tables": bool(c.ngram_vocab_sizes),
      "states of an entropy model": bool(c.entropy_state_dim),
      "a boundary head": bool(c.boundary_weight),
      "a model without hash tables": not c.hash_sizes,
      "n-grams of pixels": c.pixel_ngrams,
      "latent outputs without projection": not c.project_latent,
      "different windows in encoder and decoder": c.encoder.window != c.decoder.window,
      "a window in the latent transformer": c.latent.window is not None,
      "an entropy model with tied embeddings": entropy_config and entropy_config.tie_embeddings,
      "head_dim other than dim / num_heads": any(
          s.head_dim * s.num_heads != s.dim for s in stacks),
      "cross-attention heads that differ from the local model's": any(
          x and (x.num_heads, x.num_kv_heads) != (s.num_heads, s.num_kv_heads)
          for x, s in zip(cross, (c.encoder, c.decoder), strict=True)),
      f"patching scheme {patching and patching.scheme!r} or rule": patching is not None and (
          patching.scheme not in ("entropy", "byte") or patching.monotonic
          or patching.is_top_k or patching.threshold_add is not None
          or patching.cumulative or patching.reset_at_newline),
  }  # fmt: skip
  return [name for name, is_there in found.items() if is_there]


def _stack_to_hf(stack: TransformerConfig) -> dict[str, Any]:
  return dict(
    hidden_size=stack.dim,
    num_hidden_layers=stack.num_layers,
    num_attention_heads=stack.num_heads,
    num_key_value_heads=stack.num_kv_heads,
    intermediate_size=stack.mlp_dim,
    rms_norm_eps=stack.norm_epsilon,
    rope_parameters=rotary.write(stack),
  )
