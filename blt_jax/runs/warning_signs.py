"""Signs that patches, rows or losses are degenerate: one table, and when to say them."""

import collections
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from absl import logging
from ml_collections import ConfigDict

from blt_jax import config as settings
from blt_jax import kinds, tokenizer


class _Sign(NamedTuple):
  """What it looks at, when it shows, and what is said then."""

  numbers: tuple[str, ...]
  shows: Callable[..., bool]
  text: str


# The quickstart's entropy model has thresholds of 60 to 77 % of the largest entropy for patches
# of 3 to 8 bytes, after 30 of its 700 steps 82 to 83 %.
_NEAR = 0.8

_SIGNS = (
  _Sign(
    ("is_near_largest",),
    lambda is_near: is_near,
    "The threshold is {threshold:.3f} nats, above 80 % of the largest entropy, "
    "{largest_entropy:.3f}: little but chance starts a patch. Train the entropy model longer, "
    "or let calibrate find a lower config.patching.threshold.",
  ),
  _Sign(
    ("one_byte_patches", "scheme", "is_near_largest"),
    lambda share, scheme, is_near: share > 0.5 and scheme == "entropy" and not is_near,
    "{one_byte_patches:.0%} of the patches have one byte, more than half. Raise "
    "config.patching.threshold, or let calibrate find one with config.patching.threshold_add "
    "or monotonic, which part patches where the entropy rises.",
  ),
  _Sign(
    ("one_byte_patches", "scheme"),
    lambda share, scheme: share > 0.5 and scheme in ("space", "bpe"),
    "{one_byte_patches:.0%} of the patches have one byte, more than half: this text hardly "
    "falls into what config.patching.scheme={scheme!r} looks for. Choose another scheme.",
  ),
  _Sign(
    ("patch_size", "target_bytes_per_patch"),
    lambda size, target: not target / 2 <= size <= target * 2,
    "Patches have {patch_size:.2f} bytes in the mean and {target_bytes_per_patch:.4g} were "
    "wanted, more than a factor of two off: documents are shorter than that, or this text is "
    "not what config.patching.threshold was found on; then let calibrate find one (--data).",
  ),
  _Sign(
    ("byte_slot_use", "patch_slot_use", "misfit"),
    lambda byte_use, patch_use, misfit: min(byte_use, patch_use) < 0.7 and misfit > 1,
    "Rows use {byte_slot_use:.0%} of their byte slots and {patch_slot_use:.0%} of their patch "
    "slots, and 70 % of both should be used: patches of {patch_size:.2f} bytes fill rows of "
    "config.data.seq_len={seq_len} with config.data.num_patches={fitting_patches}, not "
    "{num_patches}.",
  ),
  _Sign(
    ("byte_slot_use", "patch_slot_use", "misfit"),
    lambda byte_use, patch_use, misfit: min(byte_use, patch_use) < 0.7 and misfit <= 1,
    "Rows use {byte_slot_use:.0%} of their byte slots and {patch_slot_use:.0%} of their patch "
    "slots, and 70 % of both should be used. config.data.num_patches={num_patches} fits the "
    "patches: documents of a few bytes leave slots between them. Join them in the text.",
  ),
  _Sign(
    ("dropped_targets",),
    lambda share: share > 0.01,
    "{dropped_targets:.1%} of the targets come where their row has no more slots for global "
    "positions or patches, and do not count, more than 1 %: raise config.model.num_patches, or "
    "leave it open; or with config.patching.entropies='device' raise config.data.num_patches.",
  ),
  _Sign(
    ("heldout_slotless",),
    lambda share: share > 0.01,
    "{heldout_slotless:.1%} of the held-out bytes lie where their row has no slots left and "
    "are all in its last patch, more than 1 %: raise config.model.num_patches, or with "
    "config.patching.entropies='device' config.data.num_patches.",
  ),
  _Sign(
    ("train_loss", "heldout_loss"),
    lambda loss, heldout_loss: 2 * loss < heldout_loss,
    "The training loss is about {train_loss:.3f} nats and the held-out loss "
    "{heldout_loss:.3f}, more than twice that: the model knows its text by heart, or learns "
    "other text than config.data.heldout_path has. Give more text in config.data.path, or "
    "lower config.num_steps.",
  ),
)


class WarningSigns:
  """Looks at the numbers of a run, and warns the 1st, 10th, 100th ... time of a sign."""

  def __init__(self, **known: Any):
    """Takes the numbers that do not change."""
    self._known = known
    self._counts: collections.Counter[_Sign] = collections.Counter()

  def look(self, **numbers: Any) -> None:
    """Checks what can be checked with these numbers and the known ones; None is unknown.

    Args:
      numbers: `threshold`, and `largest_entropy` or whatever else the rule compares with it,
        nats; `scheme`; `patch_size`, the mean, and `target_bytes_per_patch`; `seq_len` and
        `num_patches` of a row; the shares `one_byte_patches` of all patches,
        `byte_slot_use` and `patch_slot_use`, and `dropped_targets` of all targets;
        `train_loss` and `heldout_loss`, nats per target; `heldout_slotless`, the share of
        held-out bytes without a patch of their own. Others do not matter.
    """
    numbers = {k: v for k, v in {**self._known, **numbers}.items() if v is not None}
    if {"seq_len", "patch_size"} <= numbers.keys():
      numbers["fitting_patches"] = math.ceil(numbers["seq_len"] / max(numbers["patch_size"], 1))
      if "num_patches" in numbers:
        numbers["misfit"] = abs(numbers["fitting_patches"] - numbers["num_patches"])
    threshold = numbers.get("threshold", -math.inf)
    numbers["is_near_largest"] = threshold > _NEAR * numbers.get("largest_entropy", math.inf)
    for sign in _SIGNS:
      is_known = all(name in numbers for name in sign.numbers)
      if is_known and sign.shows(*(numbers[name] for name in sign.numbers)):
        self._warn(sign, numbers)

  def _warn(self, sign: _Sign, numbers: Mapping[str, Any]) -> None:
    self._counts[sign] += 1
    if math.log10(self._counts[sign]).is_integer():
      logging.warning("%s", sign.text.format(**numbers))


def make_warning_signs(config: ConfigDict, calibration: Mapping[str, float]) -> WarningSigns:
  """Knows what `config` says of patches and rows.

  Args:
    config: the whole settings, the threshold resolved.
    calibration: what `calibrate` measured of this threshold, see `patcher.Patcher`.
  """
  patching, shape = config.patching, settings.make_batch_shape(config)
  has_threshold = patching.scheme == "entropy" and patching.threshold is not None
  is_filled_by_bytes = (
    hasattr(kinds.find_kind(config.model.kind).module, "forward")
    or patching.entropies == "device"
  )
  bound = None if patching.cumulative else math.log(tokenizer.VOCAB_SIZE)  # of sums: none
  target = calibration.get("target_bytes_per_patch") if has_threshold else None
  if patching.scheme == "static":
    target = settings.stated_patch_size(patching)
  return WarningSigns(
    scheme=patching.scheme,
    threshold=patching.threshold if has_threshold else None,
    largest_entropy=calibration.get("largest_entropy", bound),
    target_bytes_per_patch=target,
    seq_len=None if is_filled_by_bytes else shape.seq_len,  # else there are slots to spare
    num_patches=shape.num_patches,
  )
