"""Configurations of Meta's BLT as ours."""

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
    hash_document_masks=False,
    cross_document_masks=False,
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
