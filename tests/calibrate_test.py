"""Thresholds for a wanted mean patch size."""

import dataclasses

import numpy as np
import pytest

from blt_jax import calibrate, patching

_RNG = np.random.default_rng(0)
_SCORED = [
  (_RNG.integers(4, 260, n).astype(np.int32), _RNG.gamma(2.0, 1.0, n).astype(np.float32))
  for n in (500, 40, 1000)
]


@pytest.mark.parametrize("monotonic", [False, True])
@pytest.mark.parametrize("target", [1.5, 4.5, 8.0])
def test_mean_is_the_one_asked_for(target, monotonic):
  rule = patching.PatchingConfig(monotonic=monotonic)
  threshold, lengths = calibrate.find_threshold(_SCORED, target, rule)
  assert abs(lengths.mean() - target) < 0.05
  config = dataclasses.replace(rule, threshold=threshold)
  again = [
    patching.patch_lengths(t[None], config, h[None], include_next=False)[0] for t, h in _SCORED
  ]
  np.testing.assert_array_equal(np.concatenate(again), lengths)
  assert lengths.sum() == 1540


@pytest.mark.parametrize("target", [0.5, 10_000.0])
def test_impossible_targets_are_named(target):
  with pytest.raises(ValueError, match=f"between 1 and .*{target}"):
    calibrate.find_threshold(_SCORED, target, patching.PatchingConfig())
