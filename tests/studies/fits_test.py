"""Intervals, lines and crossings, against SciPy and NumPy."""

import math

import numpy as np
import pytest
from scipy import stats

from blt_jax.studies import fits


@pytest.mark.parametrize("degrees", [1, 2, 4, 30])
def test_quantiles_are_students(degrees):
  assert fits.t_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-4)


def test_mean_interval():
  values = [0.011, 0.004, 0.019]
  found = fits.mean_interval(values)
  wanted = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
  np.testing.assert_allclose(found, [np.mean(values), *wanted], rtol=1e-4)
  alone = fits.mean_interval([0.5])
  assert alone.value == 0.5 and math.isnan(alone.low) and math.isnan(alone.high)


X = [15.0, 15.5, 16.0, 16.0, 16.5]
Y = [0.031, 0.018, 0.004, 0.009, -0.012]


def test_lines_are_those_of_least_squares():
  line = fits.fit_line(X, Y)
  slope, height = np.polyfit(X, Y, 1)
  assert line.slope == pytest.approx(slope) and line(0.0) == pytest.approx(height)
  with pytest.raises(ValueError, match="needs points at two budgets"):
    fits.fit_line([1.0, 1.0], [1.0, 2.0])


def test_a_crossing_lies_where_the_interval_of_the_line_holds_zero():
  root = fits.find_root(fits.fit_line(X, Y))
  slope, height = np.polyfit(X, Y, 1)
  assert root.value == pytest.approx(-height / slope)
  assert root.low < root.value < root.high
  rest = np.sqrt(np.sum((Y - np.polyval((slope, height), X)) ** 2) / 3)
  for x in (root.low, root.high):  # one end of the line's interval at x is zero
    error = rest * np.sqrt(1 / 5 + (x - np.mean(X)) ** 2 / np.sum((X - np.mean(X)) ** 2))
    assert abs(height + slope * x) == pytest.approx(stats.t.ppf(0.975, 3) * error, rel=1e-3)


def test_crossings_that_nothing_decides():
  two = fits.find_root(fits.fit_line([15.0, 16.0], [0.01, -0.01]))
  assert two.value == pytest.approx(15.5) and math.isnan(two.low)
  flat = fits.find_root(fits.fit_line([15.0, 15.5, 16.0], [0.01, -0.02, 0.01 - 1e-6]))
  assert flat.low == -math.inf and flat.high == math.inf
