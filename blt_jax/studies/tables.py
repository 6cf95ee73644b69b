"""What a study found, as rows of tables: comparisons, fits, sweeps."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from blt_jax.studies import fits
from blt_jax.studies.fits import Interval
from blt_jax.studies.records import Record

SAME_COST = 0.03  # arms whose FLOPs per byte differ by more are not compared as equal


class Comparison(NamedTuple):
  """An arm at a budget.

  Attributes:
    budget: training FLOPs that it was to have.
    records: its runs, one for each seed, ascending.
    bpb: held-out bits per byte, over seeds.
    differences: from the reference, one for each seed that both have; the reference has none.
  """

  budget: float
  records: list[Record]
  bpb: Interval
  differences: list[float]

  @property
  def difference(self) -> Interval | None:
    """Mean of `differences`; None where there are none."""
    return fits.mean_interval(self.differences) if self.differences else None

  @property
  def first(self) -> Record:
    """The run of the first seed, for what all have."""
    return self.records[0]


class Crossing(NamedTuple):
  """How an arm's difference from the reference changes with training FLOPs.

  Attributes:
    arm: which.
    change: of the difference in bits per byte, for ten times the FLOPs.
    flops: where it would be zero, with its interval; None where it does not tend to zero.
    is_inside: whether that lies among the budgets that were run.
  """

  arm: str
  change: float
  flops: Interval | None
  is_inside: bool


class Gain(NamedTuple):
  """How many times an arm's FLOPs the reference needs for the same bits per byte.

  Attributes:
    arm: which.
    budget: training FLOPs of the arm.
    low: at least so many times; 0 where the reference is ahead at its smallest budget.
    high: at most so many; infinite where the arm is ahead of the reference's largest one.
  """

  arm: str
  budget: float
  low: float
  high: float


def best_of_each(records: Sequence[Record]) -> list[Record]:
  """Of runs that differ in the learning rate alone, the best."""
  found: dict[tuple, Record] = {}
  for record in records:
    key = record.budget, record.arm, record.seed
    if key not in found or record.bpb < found[key].bpb:
      found[key] = record
  return [found[key] for key in sorted(found)]


def compare(records: Sequence[Record], reference: str) -> list[Comparison]:
  """A row for each budget and arm, the best first.

  Args:
    records: one for each budget, arm and seed.
    reference: the arm that others are compared with.
  """
  groups: dict[tuple[float, str], list[Record]] = {}
  for record in records:
    groups.setdefault((record.budget, record.arm), []).append(record)
  rows = []
  for (budget, arm), own in groups.items():
    others = [] if arm == reference else groups.get((budget, reference), [])
    rows.append(
      Comparison(
        budget=budget,
        records=sorted(own, key=lambda r: r.seed),
        bpb=fits.mean_interval([r.bpb for r in own]),
        differences=_differences(own, others),
      )
    )
  return sorted(rows, key=lambda row: (row.budget, row.bpb.value))


def _differences(own: Sequence[Record], others: Sequence[Record]) -> list[float]:
  by_seed = {other.seed: other.bpb for other in others}
  return [r.bpb - by_seed[r.seed] for r in own if r.seed in by_seed]


def find_crossings(records: Sequence[Record], reference: str) -> list[Crossing]:
  """Lines through paired differences over the logarithm of FLOPs, for each other arm."""
  partner = {(r.budget, r.seed): r.bpb for r in records if r.arm == reference}
  found = []
  for arm in dict.fromkeys(r.arm for r in records if r.arm != reference):
    own = [r for r in records if r.arm == arm and (r.budget, r.seed) in partner]
    logs = [math.log10(r.budget) for r in own]
    if len(set(logs)) < 2:
      continue
    line = fits.fit_line(logs, [r.bpb - partner[r.budget, r.seed] for r in own])
    root = fits.find_root(line)
    is_near = not math.isnan(root.value) and abs(root.value - line.center) < 10
    flops = Interval(*(_power(x) for x in root)) if is_near else None
    is_inside = min(logs) <= root.value <= max(logs)
    found.append(Crossing(arm, line.slope, flops, is_inside))
  return found


def _power(exponent: float) -> float:
  return 10.0**exponent if exponent < 300 else math.inf


def find_gains(rows: Sequence[Comparison], reference: str) -> list[Gain]:
  """What an arm saves in FLOPs, between the budgets of the reference on straight lines of logs.

  Args:
    rows: of `compare`.
    reference: the arm that others are compared with, at two budgets or more; else none.
  """
  known = [(row.bpb.value, row.budget) for row in rows if row.first.arm == reference]
  known.sort(reverse=True)  # by falling bits per byte
  if len(known) < 2:
    return []
  bpb, flops = np.asarray(known, float).T
  found = []
  for row in rows:
    if row.first.arm != reference:
      same = np.interp(-math.log(row.bpb.value), -np.log(bpb), np.log(flops))
      times = math.exp(same) / row.budget
      low = 0.0 if row.bpb.value > bpb[0] else times
      high = math.inf if row.bpb.value < bpb[-1] else times
      found.append(Gain(row.first.arm, row.budget, low, high))
  return found


def fit_curves(records: Sequence[Record]) -> dict[str, fits.Line]:
  """Arm -> line through log10 of bits per byte over log10 of FLOPs; of two budgets or more."""
  found = {}
  for arm in dict.fromkeys(r.arm for r in records):
    own = [r for r in records if r.arm == arm]
    if len({r.budget for r in own}) > 1:
      logs = [math.log10(r.budget) for r in own], [math.log10(r.bpb) for r in own]
      found[arm] = fits.fit_line(*logs)
  return found


def unequal_costs(rows: Sequence[Comparison], reference: str) -> dict[str, float]:
  """Arm -> ratio of its FLOPs per byte to the reference's, where they differ by over 3 %."""
  cost = {row.first.arm: row.first.cost.paper for row in rows}
  if reference not in cost:
    return {}
  ratios = {arm: own / cost[reference] for arm, own in cost.items()}
  return {arm: ratio for arm, ratio in ratios.items() if abs(ratio - 1) > SAME_COST}
