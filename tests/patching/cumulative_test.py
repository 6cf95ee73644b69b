"""Tests of patching/cumulative.py: patches whose entropies sum to over a threshold."""

import jax.numpy as jnp
import numpy as np
import pytest

from blt_jax import patching
from blt_jax.patching import PatchingConfig


def marks_step_by_step(row, threshold):
  total, marks = np.float32(0), []
  for entropy in row:
    total = np.float32(total + entropy)
    marks.append(total > threshold)
    total = np.float32(0) if marks[-1] else total
  return marks


def test_cumulative_rule_sums_since_the_last_mark():
  entropies = np.array([[0.5, 0.4, 0.3, 2.0, 0.9, 0.2]], np.float32)
  config = PatchingConfig(threshold=1.0, cumulative=True)
  for array in (np.asarray, jnp.asarray):
    boundaries = patching.find_boundaries(
      array(np.zeros((1, 6), np.int32)), config, array(entropies)
    )
    np.testing.assert_array_equal(boundaries, [[False, False, True, True, False, True]])
  with pytest.raises(ValueError, match="cumulative excludes monotonic"):
    PatchingConfig(cumulative=True, monotonic=True)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 700])
@pytest.mark.parametrize("threshold", [-1.0, 0.0, 1.0, 5.0, 20.0, 150.0, 1e4])
def test_numpy_and_jax_mark_what_adding_step_by_step_marks(length, threshold):
  generator = np.random.default_rng(length)
  entropies = generator.exponential(1.0, size=(3, length)).astype(np.float32)
  entropies[2, length // 2 :] = 0
  config = PatchingConfig(threshold=threshold, cumulative=True)
  want = [marks_step_by_step(row, threshold) for row in entropies]
  for array in (np.asarray, jnp.asarray):
    tokens = array(np.zeros(entropies.shape, np.int32))
    found = patching.find_boundaries(tokens, config, array(entropies))
    np.testing.assert_array_equal(found, want)
