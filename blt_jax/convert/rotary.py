"""Rotary settings of Hugging Face's configurations as ours, and back."""

from collections.abc import Mapping
from typing import Any

from blt_jax.models.config import TransformerConfig
from blt_jax.ops import rope

_FIELDS = {  # ours: theirs
  "factor": "factor",
  "low_frequency_factor": "low_freq_factor",
  "high_frequency_factor": "high_freq_factor",
  "old_context": "original_max_position_embeddings",
}
TYPES = ("default", "llama3")


def read(section: Mapping[str, Any], theta: float) -> tuple[float, rope.Scaling]:
  """The base of the wavelengths and the scaling of a model's section.

  Args:
    section: with `rope_parameters`, or `rope_theta` and `rope_scaling` as they were before.
    theta: where it says nothing.

  Raises:
    ValueError: a type that has no counterpart here, or one of its numbers is missing.
  """
  parts = [section.get(name) or {} for name in ("rope_scaling", "rope_parameters")]
  found = parts[0] | parts[1]
  theta = found.get("rope_theta") or section.get("rope_theta") or theta
  kinds = {part.get("rope_type", part.get("type")) or "default" for part in parts}
  kind = (sorted(kinds - {"default"}) or ["default"])[0]
  if kind not in TYPES:
    raise ValueError(f"rope_type {kind!r} is not known; it must be one of {TYPES}.")
  partial = found.get("partial_rotary_factor") or section.get("partial_rotary_factor") or 1
  if partial != 1:
    raise ValueError(f"partial_rotary_factor is {partial}; only whole heads can be rotated.")
  if kind == "default":
    return theta, rope.Scaling()
  if lacking := [name for name in _FIELDS.values() if name not in found]:
    raise ValueError(f"rope_type llama3 lacks {lacking[0]}; take the config.json as published.")
  return theta, rope.Scaling(**{ours: found[theirs] for ours, theirs in _FIELDS.items()})


def write(stack: TransformerConfig) -> dict[str, Any]:
  """`rope_parameters` of a stack."""
  scaling = stack.rope_scaling
  if scaling.factor == 1:
    return dict(rope_type="default", rope_theta=stack.rope_theta)
  numbers = {theirs: getattr(scaling, ours) for ours, theirs in _FIELDS.items()}
  return dict(rope_type="llama3", rope_theta=stack.rope_theta, **numbers)
