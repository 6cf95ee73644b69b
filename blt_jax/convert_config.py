"""Configurations of Meta's and Hugging Face's BLT as ours, and back to Hugging Face."""

from collections.abc import Mapping
from typing import Any

from blt_jax.models.config import (
  BLTConfig,
  ByteLMConfig,
  CrossAttentionConfig,
  TransformerConfig,
)
from blt_jax.patching import PatchingConfig

# Defaults of Meta's ByteLatentTransformerArgs and LMTransformerArgs.
_META_BLT = dict(
    dim_global=512, dim_local_encoder=512, dim_local_decoder=512, n_layers_global=8,
    n_layers_local_encoder=8, n_layers_local_decoder=8, n_heads_global=8,
    n_heads_local_encoder=8, n_heads_local_decoder=8, n_kv_heads=None,
    n_kv_heads_global=None, head_dim=None, vocab_size=-1, pm_size=0, patching_mode=None,
    cross_attn_encoder=False, cross_attn_decoder=False, cross_attn_k=None,
    cross_attn_nheads=None, cross_attn_window_encoder=None,
    cross_attn_window_decoder=None, cross_attn_all_layers_encoder=False,
    cross_attn_all_layers_decoder=False, downsampling_by_pooling=None,
    encoder_hash_byte_group_size=None, encoder_hash_byte_group_vocab=30_000,
    encoder_hash_byte_group_nb_functions=3, encoder_enable_byte_ngrams=False,
    encoder_ngram_to_size_str=None, attn_impl="xformers", attn_bias_type="causal",
    local_attention_window_len=None, norm_eps=1e-5, rope_theta=10_000.0, multiple_of=256,
    ffn_dim_multiplier=1.0, init_base_std=None, init_std_factor="disabled",
)  # fmt: skip
_META_LM = dict(
    dim=512, n_layers=8, n_heads=8, n_kv_heads=None, head_dim=None, vocab_size=-1,
    ffn_dim_multiplier=None, multiple_of=256, norm_eps=1e-5, rope_theta=10_000.0,
    init_base_std=None, init_std_factor="disabled", attn_impl="xformers",
    attn_bias_type="local_block_causal", sliding_window=None, eos_id=2,
)  # fmt: skip


def blt_from_meta(args: Mapping[str, Any]) -> BLTConfig:
  """Reads Meta's `ByteLatentTransformerArgs`; keys that do nothing there are ignored.

  Raises:
    ValueError: a setting that Meta's code cannot run, or that has no counterpart here.
  """
  a = {**_META_BLT, **args}
  if a["patching_mode"] == "":
    raise ValueError("patching_mode '' (patches with a BOE prefix) is not supported.")
  if a["attn_impl"] == "xformers":
    window, documents = a["local_attention_window_len"], True
    if a["attn_bias_type"] not in ("block_causal", "causal", None):
      raise ValueError(f"attn_bias_type {a['attn_bias_type']!r} needs a latent window.")
    latent_documents = a["attn_bias_type"] == "block_causal"
  else:  # the others ignore window and documents
    window, documents, latent_documents = None, False, False
  sizes = a["encoder_hash_byte_group_size"] or ()
  if isinstance(sizes, str):
    sizes = [int(n) for n in sizes.split(",") if n]
  ngrams = a["encoder_ngram_to_size_str"] if a["encoder_enable_byte_ngrams"] else None
  modes = a["downsampling_by_pooling"] or "max"
  return BLTConfig(
    encoder=_meta_stack(a, "local_encoder", window=window, init_std=None),
    latent=_meta_stack(a, "global", window=None, init_std=a["init_base_std"]),
    decoder=_meta_stack(a, "local_decoder", window=window, init_std=None),
    encoder_cross=_meta_cross(a, "encoder"),
    decoder_cross=_meta_cross(a, "decoder"),
    vectors_per_patch=a["cross_attn_k"] or 1,
    pooling="_".join(m for m in ("avg", "mean", "min", "max") if m in modes),
    project_latent=a["dim_global"] != a["dim_local_decoder"],
    hash_sizes=tuple(sizes),
    hash_vocab_size=a["encoder_hash_byte_group_vocab"],
    hash_functions=a["encoder_hash_byte_group_nb_functions"],
    ngram_vocab_sizes=tuple(int(n.split(":")[1]) + 4 for n in ngrams.split(","))
    if ngrams
    else (),
    vocab_size=a["vocab_size"] + a["pm_size"],
    document_masks=documents,
    latent_document_masks=latent_documents,
  )


def _meta_stack(a, name, **kwargs) -> TransformerConfig:
  kv_heads = a["n_kv_heads_global"] if name == "global" else a["n_kv_heads"]
  return TransformerConfig(
    dim=a[f"dim_{name}"],
    num_layers=a[f"n_layers_{name}"],
    num_heads=a[f"n_heads_{name}"],
    num_kv_heads=kv_heads or 0,
    **_meta_common(a),
    **kwargs,
  )


def _meta_common(a) -> dict[str, Any]:
  return dict(
    head_dim=a["head_dim"] or 0,
    mlp_multiplier=a["ffn_dim_multiplier"] or 1.0,
    mlp_multiple_of=a["multiple_of"],
    norm_epsilon=a["norm_eps"],
    rope_theta=a["rope_theta"],
    depth_init=getattr(a["init_std_factor"], "value", a["init_std_factor"]),
  )


def _meta_cross(a, name) -> CrossAttentionConfig | None:
  if not a[f"cross_attn_{name}"]:
    return None
  return CrossAttentionConfig(
    num_heads=a["cross_attn_nheads"],
    all_layers=a[f"cross_attn_all_layers_{name}"],
    window=a[f"cross_attn_window_{name}"],
  )


def byte_lm_from_meta(args: Mapping[str, Any]) -> ByteLMConfig:
  """Reads Meta's `LMTransformerArgs`. Entropy models default to a window of 512."""
  a = {**_META_LM, **args}
  is_local = a["attn_bias_type"] not in ("causal", "block_causal", None)
  window = (a["sliding_window"] or 512) if is_local else None
  documents = a["attn_bias_type"] in ("local_block_causal", "block_causal")
  if a["attn_impl"] != "xformers":  # the others ignore window and documents
    window, documents = None, False
  stack = TransformerConfig(
    dim=a["dim"],
    num_layers=a["n_layers"],
    num_heads=a["n_heads"],
    num_kv_heads=a["n_kv_heads"] or 0,
    window=window,
    init_std=a["init_base_std"],
    **_meta_common(a),
  )
  return ByteLMConfig(stack, a["vocab_size"], document_masks=documents, eos_id=a["eos_id"])


def patching_from_meta(args: Mapping[str, Any]) -> PatchingConfig:
  """Reads Meta's `PatcherArgs`."""
  return PatchingConfig(
    scheme=args.get("patching_mode") or "entropy",
    threshold=args.get("threshold", PatchingConfig.threshold),
    threshold_add=args.get("threshold_add"),
    monotonic=args.get("monotonicity", False),
    patch_size=args.get("patch_size"),
    max_patch_length=args.get("max_patch_length"),
  )


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
  rope = section.get("rope_parameters") or {}
  if (
    rope.get("rope_type", "default") != "default" or section.get("hidden_act", "silu") != "silu"
  ):
    raise ValueError(f"{name}_config: only rope_type default and hidden_act silu are known.")
  section["rope_theta"] = rope.get("rope_theta", section.get("rope_theta", theta))
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
  c = config
  stacks = [c.encoder, c.latent, c.decoder]
  stacks += [entropy_config.transformer] if entropy_config else []
  cross = (c.encoder_cross, c.decoder_cross)
  refines = c.encoder_cross and c.encoder_cross.all_layers and c.encoder.num_layers > 1
  obstacles = {
      "a model without cross-attention": None in cross,
      "cross-attention windows": any(x and (x.window or 1) > 1 for x in cross),
      f"pooling {c.pooling!r}": c.pooling != "max",
      "patches refined over several encoder layers": refines and not c.repool,
      "frequency n-gram tables": bool(c.ngram_vocab_sizes),
      "a model without hash tables": not c.hash_sizes,
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
          or patching.is_top_k or patching.threshold_add is not None),
  }  # fmt: skip
  if any(obstacles.values()):
    found = ", ".join(name for name, is_there in obstacles.items() if is_there)
    raise ValueError(f"Hugging Face's BLT has no counterpart for: {found}.")
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


def _stack_to_hf(stack: TransformerConfig) -> dict[str, Any]:
  return dict(
    hidden_size=stack.dim,
    num_hidden_layers=stack.num_layers,
    num_attention_heads=stack.num_heads,
    num_key_value_heads=stack.num_kv_heads,
    intermediate_size=stack.mlp_dim,
    rms_norm_eps=stack.norm_epsilon,
    rope_parameters=dict(rope_type="default", rope_theta=stack.rope_theta),
  )
