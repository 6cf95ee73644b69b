"""Lookups in a table of hash n-grams, from evenly spread to as skewed as can be."""

import math

import numpy as np

ROWS = 512
LOOKUPS = (3, 8, 16)  # [T, B, S]


def patterns(rng):
  """Rows asked for: evenly spread and as skewed as can be."""
  spread = rng.permutation(ROWS)[: math.prod(LOOKUPS)].reshape(LOOKUPS)
  padding = rng.integers(0, ROWS, LOOKUPS)
  padding[:, 1:] = padding[:, :, 5:] = 1
  return {
    "each row once": spread,
    "random": rng.integers(0, ROWS, LOOKUPS),
    "one row": np.full(LOOKUPS, 7),
    "the last row": np.full(LOOKUPS, ROWS - 1),
    "one owner": rng.integers(64, 128, LOOKUPS),
    "one owner per device": np.arange(8)[:, None] * 64 + rng.integers(0, 64, LOOKUPS),
    "mostly padding": padding,
    "a hot row": np.where(rng.random(LOOKUPS) < 0.5, 100, rng.integers(0, ROWS, LOOKUPS)),
  }
