"""Means of paired differences, lines through budgets, and where they cross zero."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

_CONFIDENCE = 0.95


class Interval(NamedTuple):
  """A number, and the ends of its interval of 95 %; NaN where one value says nothing of it."""

  value: float
  low: float
  high: float


def t_quantile(degrees: int) -> float:
  """The t that a Student variable stays within, on either side, in 95 % of cases.

  Args:
    degrees: of freedom, 1 or more.
  """
  return float(stdtrit(degrees, (1 + _CONFIDENCE) / 2))


def mean_interval(values: Sequence[float]) -> Interval:
  """The mean of independent values, with Student's interval.

  Args:
    values: at least one; paired differences, one for each seed.
  """
  count, mean = len(values), float(np.mean(values))
  if count < 2:
    return Interval(mean, math.nan, math.nan)
  half = t_quantile(count - 1) * float(np.std(values, ddof=1)) / math.sqrt(count)
  return Interval(mean, mean - half, mean + half)


class Line(NamedTuple):
  """A least-squares line y = height + slope (x - center).

  Attributes:
    center: mean of x.
    height: mean of y.
    slope: of the line.
    spread: sum of squares of x - center.
    points: how many.
    variance: of y around the line; NaN for two points, which leave none.
  """

  center: float
  height: float
  slope: float
  spread: float
  points: int
  variance: float

  def __call__(self, x: float) -> float:
    """The line at x."""
    return self.height + self.slope * (x - self.center)


def fit_line(x: Sequence[float], y: Sequence[float]) -> Line:
  """The line through points.

  Args:
    x: [n], two different values at least.
    y: [n].

  Raises:
    ValueError: all x are equal.
  """
  xs, ys = np.asarray(x, float), np.asarray(y, float)
  center, height, count = float(xs.mean()), float(ys.mean()), len(xs)
  spread = float(((xs - center) ** 2).sum())
  if spread == 0:
    raise ValueError("A line needs points at two budgets.")
  slope = float(((xs - center) * ys).sum() / spread)
  rest = ys - height - slope * (xs - center)
  variance = float((rest**2).sum() / (count - 2)) if count > 2 else math.nan
  return Line(center, height, slope, spread, count, variance)


def find_root(line: Line) -> Interval:
  """Where a line is zero, with the interval of Fieller's theorem.

  That holds all x at which the line may be zero by its own interval of 95 %. It is NaN where
  there is nothing to judge by, and infinite where the slope may be zero.
  """
  root = line.center - line.height / line.slope if line.slope else math.nan
  if math.isnan(line.variance):
    return Interval(root, math.nan, math.nan)
  # With d = x - center, where (height + slope d)^2 <= q (1 / n + d^2 / spread).
  q = t_quantile(line.points - 2) ** 2 * line.variance
  a, b = line.slope**2 - q / line.spread, line.slope * line.height
  c = line.height**2 - q / line.points
  if a <= 0:
    return Interval(root, -math.inf, math.inf)
  half = math.sqrt(max(b * b - a * c, 0.0)) / a
  return Interval(root, line.center - b / a - half, line.center - b / a + half)
