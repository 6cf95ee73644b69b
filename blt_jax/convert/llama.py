"""Llamas of Hugging Face as a model over pieces, whose blocks start other models."""

from collections.abc import Mapping
from typing import Any

from blt_jax.convert import fields, names, rotary
from blt_jax.convert.plan import Plan, make_plan
from blt_jax.models.byte_lm import ByteLM
from blt_jax.models.config import BPELMConfig, TransformerConfig

# What the configurations of Hugging Face have where a file says nothing, by model_type.
_DEFAULTS: dict[str, dict[str, Any]] = {
  "llama": dict(num_key_value_heads=None, rms_norm_eps=1e-6),
  "mistral": dict(num_key_value_heads=8, rms_norm_eps=1e-6, sliding_window=4096),
}
FAMILIES = tuple(_DEFAULTS)  # whose blocks are ours
_SIZES = (
  "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"
)  # fmt: skip
# What would add a part that our blocks do not have, and the value that adds none.
_WITHOUT = {
  "attention_bias": False, "mlp_bias": False, "hidden_act": "silu", "quantization_config": None
}  # fmt: skip


def config_from_llama(config: Mapping[str, Any]) -> BPELMConfig:
  """Reads a `LlamaConfig` or `MistralConfig`.

  Raises:
    ValueError: another architecture, or a part that our blocks do not have.
  """
  family = config.get("model_type")
  if family not in FAMILIES:
    raise ValueError(
      f"The config.json is one of model_type {family!r}; only {FAMILIES} have the blocks of "
      "blt_jax. Choose weights of one of these; a 'blt' becomes a run by --from=hf of "
      "blt_jax.convert."
    )
  fields.check(config)
  if lacking := [name for name in _SIZES if not config.get(name)]:
    raise ValueError(f"The config.json lacks {lacking[0]}; take it as published.")
  for name, plain in _WITHOUT.items():
    if config.get(name, plain) not in (plain, None):
      raise ValueError(
        f"The config.json has {name} {config[name]!r}, and our blocks know {plain!r} only; "
        "choose other weights."
      )
  theta, scaling = rotary.read(config, 10_000.0)
  config = {**_DEFAULTS[family], **config}
  stack = TransformerConfig(
    dim=config["hidden_size"],
    num_layers=config["num_hidden_layers"],
    num_heads=config["num_attention_heads"],
    num_kv_heads=config["num_key_value_heads"] or 0,
    head_dim=config.get("head_dim") or 0,
    mlp_dim=config["intermediate_size"],
    window=config["sliding_window"] if family == "mistral" else None,
    norm_epsilon=config["rms_norm_eps"],
    rope_theta=theta,
    rope_scaling=scaling,
  )
  tied = bool(config.get("tie_word_embeddings", False))
  return BPELMConfig(stack, config["vocab_size"], tie_embeddings=tied)


def plan_blocks(config: Mapping[str, Any], arrays: Mapping[str, Any]) -> Plan:
  """Plans the blocks alone, whatever else is there.

  Raises:
    ValueError: as `config_from_llama`, or the arrays do not fit.
  """
  model = ByteLM(config_from_llama(config))
  entries = names.llama_entries(model.config, _prefix(arrays))
  blocks = [entry for entry in entries if entry.path.startswith("transformer/")]
  others = {name for entry in entries for name in entry.names} | {"lm_head.weight"}
  return make_plan(model, blocks, arrays, unused=others)


def plan_model(config: Mapping[str, Any], arrays: Mapping[str, Any]) -> Plan:
  """Plans the whole model.

  Raises:
    ValueError: as `plan_blocks`.
  """
  model = ByteLM(config_from_llama(config))
  entries = names.llama_entries(model.config, _prefix(arrays))
  unused = ["lm_head.weight"] if model.config.tie_embeddings else []
  return make_plan(model, entries, arrays, unused)


def _prefix(arrays: Mapping[str, Any]) -> str:
  """Models with an output matrix put "model." before the names of all the rest."""
  return "" if any(name.startswith("layers.") for name in arrays) else "model."
