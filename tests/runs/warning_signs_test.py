"""Warnings of degenerate patches, rows and losses."""

import math

import pytest

from blt_jax import config as settings
from blt_jax.runs.warning_signs import WarningSigns, make_warning_signs

_ROW = dict(seq_len=4096, num_patches=1400)
_FULL = dict(byte_slot_use=0.99, patch_slot_use=0.99)
# What is degenerate, what is just not, and what the warning of the first must say.
_CASES = {
  "threshold": (
    dict(threshold=3.3, largest_entropy=4.0),
    dict(threshold=3.1, largest_entropy=4.0),
    ["3.300 nats", "80 %", "4.000", "config.patching.threshold"],
  ),
  "threshold that cannot rise": (
    dict(threshold=3.3, largest_entropy=4.0, one_byte_patches=0.6, scheme="entropy"),
    dict(threshold=3.1, largest_entropy=4.0, one_byte_patches=0.4, scheme="entropy"),
    ["Train the entropy model longer"],
  ),
  "one byte": (
    dict(one_byte_patches=0.51, scheme="entropy"),
    dict(one_byte_patches=0.49, scheme="entropy"),
    ["51% of the patches", "more than half", "config.patching.threshold_add"],
  ),
  "one byte by intention": (
    dict(one_byte_patches=0.51, scheme="space"),
    dict(one_byte_patches=1.0, scheme="byte"),
    ["51% of the patches", "scheme='space'", "another scheme"],
  ),
  "short documents": (
    dict(seq_len=256, num_patches=171, patch_size=1.5, byte_slot_use=0.66, patch_slot_use=0.9),
    dict(seq_len=256, num_patches=171, patch_size=1.5, byte_slot_use=0.71, patch_slot_use=0.9),
    ["66% of their byte slots", "num_patches=171 fits", "a few bytes"],
  ),
  "long": (
    dict(patch_size=512.0, target_bytes_per_patch=4.5),
    dict(patch_size=8.9, target_bytes_per_patch=4.5),
    ["512.00 bytes", "4.5 were wanted", "factor of two", "config.patching.threshold"],
  ),
  "short": (
    dict(patch_size=2.2, target_bytes_per_patch=4.5),
    dict(patch_size=2.3, target_bytes_per_patch=4.5),
    ["2.20 bytes", "4.5 were wanted"],
  ),
  "patch slots": (
    _ROW | _FULL | dict(patch_slot_use=0.347, patch_size=8.436),
    _ROW | _FULL | dict(patch_slot_use=0.71, patch_size=4.12),
    ["35% of their patch slots", "70 %", "config.data.num_patches=486, not 1400"],
  ),
  "byte slots": (
    _ROW | _FULL | dict(byte_slot_use=0.5, patch_size=1.46),
    _ROW | _FULL | dict(byte_slot_use=0.71, patch_size=2.1),
    ["50% of their byte slots", "config.data.num_patches=2806, not 1400"],
  ),
  "dropped": (
    dict(dropped_targets=0.034),
    dict(dropped_targets=0.009),
    ["3.4% of the targets", "1 %", "config.model.num_patches"],
  ),
  "slotless": (
    dict(heldout_slotless=0.044),
    dict(heldout_slotless=0.009, slotless_inputs=0.5),  # as of a threshold that has begun
    ["4.4% of the held-out bytes", "1 %", "config.data.num_patches"],
  ),
  "by heart": (
    dict(train_loss=0.08, heldout_loss=11.5),
    dict(train_loss=1.0, heldout_loss=1.9),
    ["0.080 nats", "11.500", "twice", "config.data.path", "config.num_steps"],
  ),
}


@pytest.mark.parametrize("case", _CASES.values(), ids=_CASES)
def test_signs_are_said_with_value_rule_and_setting(case, caplog):
  degenerate, healthy, words = case
  WarningSigns().look(**healthy)
  assert not caplog.records
  WarningSigns().look(**degenerate)
  (record,) = caplog.records
  assert record.levelname == "WARNING" and "\n" not in record.getMessage()
  assert not [word for word in words if word not in record.getMessage()]


def test_what_is_not_known_is_not_judged(caplog):
  signs = WarningSigns(threshold=9.0, target_bytes_per_patch=None)
  signs.look(patch_size=512.0, one_byte_patches=1.0, train_loss=None, heldout_loss=5.0)
  assert not caplog.records


def test_warnings_get_rare(caplog):
  signs = WarningSigns(threshold=9.0, largest_entropy=5.0)
  for _ in range(1000):
    signs.look()
  assert len(caplog.records) == 4


def test_a_run_knows_its_target_and_its_bounds(caplog):
  config = settings.get_config("blt")
  config.patching.threshold = 5.0
  make_warning_signs(config, {}).look()
  assert f"largest entropy, {math.log(260):.3f}" in caplog.text
  caplog.clear()
  calibration = dict(target_bytes_per_patch=4.5, largest_entropy=7.0)
  make_warning_signs(config, calibration).look(patch_size=512.0)
  assert "4.5 were wanted" in caplog.text and "nats" not in caplog.text
  caplog.clear()
  config.patching.update(scheme="static", patch_size=100.0, max_patch_length=6)
  make_warning_signs(config, {}).look(patch_size=2.0, **_FULL)
  assert "6 were wanted" in caplog.text and "nats" not in caplog.text
  caplog.clear()
  make_warning_signs(config, {}).look(patch_size=6.0, byte_slot_use=0.99, patch_slot_use=0.6)
  assert "config.data.num_patches=683, not 1024" in caplog.text
  caplog.clear()
  config.patching.update(scheme="entropy", patch_size=None, entropies="device")
  make_warning_signs(config, {}).look(patch_size=6.0, byte_slot_use=0.99, patch_slot_use=0.6)
  assert not [r for r in caplog.records if "num_patches" in r.getMessage()]
  caplog.clear()
  config = settings.get_config("spacebyte")
  make_warning_signs(config, {}).look(patch_size=6.0, byte_slot_use=0.99, patch_slot_use=0.6)
  assert not caplog.records
