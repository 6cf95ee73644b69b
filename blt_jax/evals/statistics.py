"""Numbers over items, with their standard errors and intervals."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 1000
_PART = 100  # samples at a time


class Estimate(NamedTuple):
  """A number over items, and its standard error; NaN where one item says nothing of it."""

  value: float
  error: float


@dataclasses.dataclass(frozen=True)
class Statistic:
  """A number over items that follows from the sums of what each of them brings.

  Attributes:
    columns: float [n, C], what n items bring; of a mean [n, 1], its values.
    finish: sums [C] of items, and how many there are -> the number; None for a mean.
  """

  columns: np.ndarray
  finish: Callable[[np.ndarray, int], float] | None = None

  def estimate(self, seed: int = 0) -> Estimate:
    """The number with its error: of a mean in closed form, else by bootstrap."""
    if self.finish is None:
      return mean(self.columns[:, 0].tolist())
    count = len(self.columns)
    sums = [math.fsum(column) for column in self.columns.T]
    value = float(self.finish(np.array(sums), count))
    error = float(self.resample(seed).std(ddof=1)) if count > 1 else math.nan
    return Estimate(value, error)

  def resample(self, seed: int = 0) -> np.ndarray:
    """The number of samples of the items, as many with replacement.

    Two statistics of as many items and one seed have the same samples.

    Args:
      seed: of the draws.

    Returns:
      float [RESAMPLES].
    """
    rng, count = np.random.default_rng(seed), len(self.columns)
    found = []
    for _ in range(RESAMPLES // _PART):
      drawn = rng.integers(0, count, (_PART, count))
      times = np.stack([np.bincount(sample, minlength=count) for sample in drawn])
      sums = times @ self.columns  # [_PART, C]
      finish = self.finish
      found.append(
        sums[:, 0] / count if finish is None else np.array([finish(s, count) for s in sums])
      )
    return np.concatenate(found)


def of_means(values: Sequence[float]) -> Statistic:
  """The mean of values, one for each item."""
  return Statistic(np.asarray(values, float)[:, None])


def mean(values: Sequence[float]) -> Estimate:
  """The mean; the error is the sample deviation over the root of their number."""
  count = len(values)
  value = math.fsum(values) / count
  if count < 2:
    return Estimate(value, math.nan)
  variance = math.fsum((v - value) ** 2 for v in values) / (count - 1)
  return Estimate(value, math.sqrt(variance / count))


def interval(samples: np.ndarray) -> tuple[float, float]:
  """The middle 95 % of bootstrap samples [RESAMPLES]."""
  low, high = np.percentile(samples, [2.5, 97.5])
  return float(low), float(high)
