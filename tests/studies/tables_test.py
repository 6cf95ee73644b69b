"""Comparisons and crossings of runs that nobody trained, against NumPy."""

import math

import numpy as np
import pytest

from blt_jax.studies import report, tables
from blt_jax.studies.cost import Cost
from blt_jax.studies.records import Point, Record
from blt_jax.studies.sweep import Sweep

BUDGETS = (1e15, 1e16, 1e17)


def _records():
  """Two arms whose curves cross at 1e16, with a little noise."""
  found = []
  for arm, slope, noise in (("a", -0.10, 0.0), ("b", -0.12, 0.001)):
    for i, budget in enumerate(BUDGETS):
      for seed in (0, 1):
        bpb = 1.5 + slope * (math.log10(budget) - 16) + noise * (-1) ** (i + seed) + seed * 0.02
        paper = 1e6 if arm == "a" else 1.1e6
        curve = (Point(budget / (3 * paper), bpb),)
        cost = Cost(paper, 1.2 * paper, 0.5e6, 0.6e6)
        found.append(Record(arm, budget, 1e-3, seed, bpb, curve, 4.5, 0.1, cost, "runs/x"))
  return found


def test_differences_are_between_runs_of_one_seed():
  rows = tables.compare(_records(), "a")
  assert [(row.first.arm, row.budget) for row in rows][:2] == [("a", 1e15), ("b", 1e15)]
  assert rows[-2].first.arm == "b"  # the best first
  row = next(r for r in rows if (r.first.arm, r.budget) == ("b", 1e17))
  assert row.difference.value == pytest.approx(-0.02)
  deviation = np.std([-0.02 + 0.001, -0.02 - 0.001], ddof=1) / math.sqrt(2)
  assert row.difference.high == pytest.approx(-0.02 + 12.7062 * deviation, rel=1e-4)
  alone = tables.compare([r for r in _records() if r.seed == 0 or r.arm == "a"], "a")
  assert {len(r.differences) for r in alone if r.first.arm == "b"} == {1}
  assert {r.difference for r in rows if r.first.arm == "a"} == {None}


def test_the_best_learning_rate_stands_for_an_arm():
  worse = [Record(**{**vars(r), "bpb": r.bpb + 1, "rate": 5e-3}) for r in _records()]
  assert sorted(tables.best_of_each(worse + _records()), key=str) == sorted(_records(), key=str)


def test_curves_cross_where_they_do():
  (crossing,) = tables.find_crossings(_records(), "a")
  assert crossing.change == pytest.approx(-0.02) and crossing.is_inside
  assert crossing.flops.value == pytest.approx(1e16, rel=1e-3)
  assert 3e15 < crossing.flops.low < 1e16 < crossing.flops.high < 3e16


def test_flops_that_an_arm_saves_are_read_off_the_curve_of_the_reference():
  like = _records()[0]
  scores = {("a", 1e15): 2.0, ("a", 4e15): 1.0, ("b", 1e14): 2.1, ("b", 1e15): math.sqrt(2)}
  scores["b", 4e15] = 0.9
  records = [
    Record(**{**vars(like), "arm": arm, "budget": budget, "bpb": bpb})
    for (arm, budget), bpb in scores.items()
  ]
  gains = tables.find_gains(tables.compare(records, "a"), "a")
  assert [gain[1:] for gain in gains] == [
    pytest.approx(values) for values in ((1e14, 0, 10), (1e15, 2, 2), (4e15, 1, math.inf))
  ]
  lines = report._gains(tables.compare(records, "a"), "a")[1]
  assert lines.endswith("| b | < 10 | 2 | > 1 |")


def test_a_report_says_what_to_be_careful_with(tmp_path, monkeypatch):
  monkeypatch.setattr(report.plots, "draw_all", lambda *_: ["picture.png"])
  sweeps = {"a": Sweep({1e-3: 1.6, 2e-3: 1.5}), "b": Sweep({1e-3: 1.6, 2e-3: 1.5, 4e-3: 1.7})}
  text = report.write(str(tmp_path), _records(), "a", sweeps)
  assert "b takes 1.100 times the FLOPs per byte of a, more than 3%" in text
  assert "The best learning rate of a, 0.002, is at the edge" in text
  assert "learning rate of b" not in text
  assert "| b | 2 | " in text and "| 1.1 | 1.32 | 1.6 | 1.92 |" in text
  assert "1e+16 | " in text.partition("crosses zero")[2]
  with pytest.raises(ValueError, match="No run of the reference 'c' is done; .* a, b"):
    report.write(str(tmp_path), _records(), "c")
