"""Which runs a study wants, as results come in."""

import math

import pytest

from blt_jax.studies import sweep
from blt_jax.studies.plan import Arm, Plan
from blt_jax.studies.sweep import Run


def _plan(**fields):
  arms = {"a": Arm("a.py"), "b": Arm("b.py"), "c": Arm("c.py", rate_of="a", budgets=(1e9,))}
  usual = dict(arms=arms, budgets={1e8: 1, 1e9: 2}, rates=(1e-3, 2e-3, 4e-3), reference="a")
  return Plan(**usual | fields)


def _swept(*scores, arm="a"):
  return {Run(arm, 1e8, r, 0): s for r, s in zip((1e-3, 2e-3, 4e-3), scores, strict=True)}


def test_learning_rates_come_first():
  runs = sweep.wanted(_plan(), ["a", "b", "c"], {})
  assert runs == [Run(arm, 1e8, rate, 0) for arm in "ab" for rate in (1e-3, 2e-3, 4e-3)]
  foreseen = sweep.foreseen(_plan(), ["a", "b", "c"], {})
  assert len(foreseen) == len(set(foreseen)) == 6 + 3 * 2


def test_the_best_rate_goes_on_by_the_rule():
  done = _swept(3.0, 2.5, 2.7)
  runs = sweep.wanted(_plan(), ["a"], done)
  larger = float(f"{2e-3 * 10**-0.125:.3g}")
  assert runs[3:] == [Run("a", 1e9, larger, 0), Run("a", 1e9, larger, 1)]
  assert sweep.wanted(_plan(rate_exponent=0.0), ["a"], done)[-1].rate == 2e-3
  assert sweep.wanted(_plan(), ["c"], done)[-1] == Run("c", 1e9, larger, 1)


def test_repeats_begin_with_the_largest_budget():
  done = _swept(3.0, 2.5, 2.7)
  runs = sweep.wanted(_plan(budgets={1e8: 2, 1e9: 2}), ["a"], done)[3:]
  assert [(run.budget, run.seed) for run in runs] == [(1e9, 0), (1e9, 1), (1e8, 1)]


@pytest.mark.parametrize(("scores", "rate"), [((2, 3, 4), 5e-4), ((4, 3, 2), 8e-3)])
def test_a_sweep_grows_where_its_best_is_at_the_edge(scores, rate):
  plan, done = _plan(), _swept(*scores)
  assert Run("a", 1e8, rate, 0) in sweep.wanted(plan, ["a"], done)
  assert sweep.rate_at(plan, "a", 1e9, done) is None
  done[Run("a", 1e8, rate, 0)] = 5.0  # worse: the edge was the best
  found = sweep.sweep_of(plan, "a", done)
  assert found.best in (1e-3, 4e-3) and not found.is_at_edge


def test_a_sweep_ends_at_its_most_extensions():
  plan, done = _plan(), _swept(4, 3, 2)
  done |= {Run("a", 1e8, 8e-3, 0): 1.5, Run("a", 1e8, 1.6e-2, 0): 1.0}
  found = sweep.sweep_of(plan, "a", done)
  assert (len(found.scores), found.best, found.is_at_edge) == (5, 1.6e-2, True)


def test_what_diverged_is_never_the_best():
  found = sweep.sweep_of(_plan(), "a", _swept(3.0, 2.5, math.inf))
  assert found.best == 2e-3 and not found.is_at_edge
  assert sweep.sweep_of(_plan(), "a", _swept(*[math.inf] * 3)).best is None


def test_plans_that_cannot_be():
  for fields, message in [
    (dict(reference="z"), "reference is 'z'; it must be one of .'a', 'b', 'c'"),
    (dict(budgets={1e9: 1, 1e8: 1}), "must be ascending FLOPs"),
    (dict(budgets={1e9: 0}), "numbers of seeds"),
    (dict(rates=(2e-3, 1e-3)), "rates is .* ascending"),
    (dict(arms={"a": Arm("a.py", entropies="x")}), "entropies is 'x'; it must be one of"),
    (dict(arms={"a": Arm("a.py", rate_of="y")}), "rate_of is 'y'; it must be one of"),
    (dict(arms={"a": Arm("a.py", budgets=(5.0,))}), "budgets is 5.0; it must be one of"),
  ]:
    with pytest.raises(ValueError, match=message):
      _plan(**fields)
