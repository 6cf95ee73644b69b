"""Numbers over items, with their standard errors."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 1000


class Estimate(NamedTuple):
  """A number over items, and its standard error; NaN where one item says nothing of it."""

  value: float
  error: float


def mean(values: Sequence[float]) -> Estimate:
  """The mean; the error is the sample deviation over the root of their number."""
  count = len(values)
  value = math.fsum(values) / count
  if count < 2:
    return Estimate(value, math.nan)
  variance = math.fsum((v - value) ** 2 for v in values) / (count - 1)
  return Estimate(value, math.sqrt(variance / count))


def bootstrap(
  values: Sequence[float], statistic: Callable[[np.ndarray], np.ndarray], seed: int = 0
) -> np.ndarray:
  """The statistic of samples that are drawn from the values, as many with replacement.

  Args:
    values: of the items.
    statistic: float [R, n] -> [R], of each sample.
    seed: of the draws.

  Returns:
    float [RESAMPLES].
  """
  rng, array = np.random.default_rng(seed), np.asarray(values, float)
  parts = (rng.integers(0, len(array), (100, len(array))) for _ in range(RESAMPLES // 100))
  return np.concatenate([statistic(array[part]) for part in parts])


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
  """The middle 95 % of the means of bootstrap samples."""
  means = bootstrap(values, lambda samples: samples.mean(axis=1), seed)
  low, high = np.percentile(means, [2.5, 97.5])
  return float(low), float(high)
