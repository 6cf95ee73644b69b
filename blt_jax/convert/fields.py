"""Fields of foreign config.json files, checked before anything is made of them."""

import math
from collections.abc import Mapping
from typing import Any

_WHOLE = {  # or null, where that means a default
  "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
  "num_key_value_heads", "head_dim", "vocab_size", "sliding_window", "cross_attn_k",
  "local_attention_window_len", "max_patch_length", "encoder_hash_byte_group_vocab",
  "encoder_hash_byte_group_nb_functions", "original_max_position_embeddings",
}  # fmt: skip
_REAL = {"rms_norm_eps", "rope_theta", "factor", "low_freq_factor", "high_freq_factor"}
_SECTIONS = {
  "encoder_config", "decoder_config", "global_config", "patcher_config", "rope_parameters",
  "rope_scaling",
}  # fmt: skip


def check(config: Mapping[str, Any], prefix: str = "") -> None:
  """Checks the types of fields that are there, in sections too.

  Args:
    config: what the file holds.
    prefix: of names, in messages.

  Raises:
    ValueError: a field has a value of another type, or below its least.
  """
  for name, value in config.items():
    if name in _SECTIONS and isinstance(value, Mapping):
      check(value, f"{prefix}{name}.")
    elif rule := _broken_rule(name, value):
      raise ValueError(
        f"The config.json has {prefix}{name} {value!r}; it must be {rule}: take the file as "
        "published."
      )


def _broken_rule(name: str, value: Any) -> str | None:
  """What a field must be and is not; None where it is."""
  is_whole = type(value) is int and value >= 1
  if name in _WHOLE and not (is_whole or value is None):
    return "a whole number >= 1"
  if name in _REAL and not (type(value) in (int, float) and 0 < value < math.inf):
    return "a number > 0"
  if name == "encoder_hash_byte_group_size" and value is not None:
    is_list = isinstance(value, list | tuple)
    return None if is_list and all(type(x) is int for x in value) else "a list of whole numbers"
  if name in _SECTIONS and value is not None:
    return "an object"
  return None
