"""Differences of two models at the same items."""

from collections.abc import Sequence
from typing import NamedTuple

from blt_jax.evals import statistics
from blt_jax.evals.suite import Report, TaskReport


class Difference(NamedTuple):
  """How much larger a number is than that of another model, at the same items.

  Attributes:
    value: of this model minus that of the other.
    error: standard error of the paired differences.
    interval: of 95 %, by bootstrap over items.
  """

  value: float
  error: float
  interval: tuple[float, float]


def differences(one: Report, other: Report) -> dict[str, dict[str, Difference]]:
  """Task -> metric -> by how much `other` is larger than `one`.

  Raises:
    ValueError: they were not asked the same.
  """
  return {name: _of_task(one[name], other[name]) for name in one.keys() & other.keys()}


def _of_task(one: TaskReport, other: TaskReport) -> dict[str, Difference]:
  if one.asked != other.asked:
    raise ValueError(f"Two models were asked other questions of {one.task.name}.")
  left, right = (told.task.statistics(told.scores) for told in (one, other))
  return {name: _difference(left[name], right[name]) for name in left}


def _difference(one: statistics.Statistic, other: statistics.Statistic) -> Difference:
  samples = other.resample() - one.resample()  # of the same items
  if one.finish is None:
    value, error = statistics.mean(_column(other.columns - one.columns))
  else:
    value = other.estimate().value - one.estimate().value
    error = float(samples.std(ddof=1)) if len(one.columns) > 1 else float("nan")
  return Difference(value, error, statistics.interval(samples))


def _column(array) -> Sequence[float]:
  return array[:, 0].tolist()
