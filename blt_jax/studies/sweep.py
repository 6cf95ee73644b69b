"""Which runs a study wants, given what is done: learning rates first, then all budgets."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from blt_jax.studies.plan import Plan


class Run(NamedTuple):
  """One training run."""

  arm: str
  budget: float  # training FLOPs
  rate: float  # peak learning rate
  seed: int

  @property
  def name(self) -> str:
    """Of its folder."""
    return f"{self.arm}/{self.budget:g}_rate{self.rate:g}_seed{self.seed}"


Done = Mapping[Run, float]  # held-out bits per byte; infinite where training diverged


class Sweep(NamedTuple):
  """The learning rates of an arm at its smallest budget.

  Attributes:
    scores: rate -> held-out bits per byte, ascending; NaN where it is still to come.
  """

  scores: Mapping[float, float]

  @property
  def best(self) -> float | None:
    """The best rate; None while some are to come, or if training diverged with each."""
    values = list(self.scores.values())
    if any(map(math.isnan, values)) or not any(map(math.isfinite, values)):
      return None
    return min(self.scores, key=self.scores.__getitem__)

  @property
  def is_at_edge(self) -> bool:
    """Whether a rate beyond those tried might be better still."""
    rates = list(self.scores)
    return len(rates) > 1 and self.best in (rates[0], rates[-1])


def sweep_of(plan: Plan, arm: str, done: Done) -> Sweep:
  """The sweep of an arm: the plan's rates, and further ones while the best is at the edge."""
  rates = list(plan.rates)
  for _ in range(plan.max_extensions + 1):
    budget = plan.budgets_of(arm)[0]
    runs = {rate: Run(arm, budget, rate, 0) for rate in rates}
    found = Sweep({rate: done.get(run, math.nan) for rate, run in runs.items()})
    if len(rates) >= len(plan.rates) + plan.max_extensions or not found.is_at_edge:
      break
    if found.best == rates[0]:
      rates.insert(0, _round(rates[0] ** 2 / rates[1]))
    else:
      rates.append(_round(rates[-1] ** 2 / rates[-2]))
  return found


def rate_at(plan: Plan, arm: str, budget: float, done: Done) -> float | None:
  """The learning rate of an arm at a budget; None while its sweep is not done."""
  swept = plan.swept(arm)
  first = plan.budgets_of(swept)[0]
  best = sweep_of(plan, swept, done).best
  if best is None or budget == first:
    return best
  return _round(best * (budget / first) ** plan.rate_exponent)


def wanted(plan: Plan, arms: Sequence[str], done: Done) -> list[Run]:
  """All runs known so far, those that are done included, in the order to train them.

  Args:
    plan: of the study.
    arms: which of its arms.
    done: what has come out.
  """
  swept = dict.fromkeys(map(plan.swept, arms))
  runs = [
    Run(arm, plan.budgets_of(arm)[0], rate, 0)
    for arm in swept
    for rate in sweep_of(plan, arm, done).scores
  ]
  # All curves first, then their repeats: those of the largest budget say most
  for seed in range(max(plan.budgets.values())):
    for budget, num_seeds in sorted(plan.budgets.items(), reverse=seed > 0):
      for arm in arms:
        rate = rate_at(plan, arm, budget, done)
        if budget in plan.budgets_of(arm) and rate is not None and seed < num_seeds:
          runs.append(Run(arm, budget, rate, seed))
  return list(dict.fromkeys(runs))


def foreseen(plan: Plan, arms: Sequence[str], done: Done) -> list[Run]:
  """As `wanted`, and those whose rate is not known yet, with the middle one of the plan."""
  middle = plan.rates[len(plan.rates) // 2]
  runs = wanted(plan, arms, done)
  for budget, num_seeds in plan.budgets.items():
    for arm in arms:
      is_open = rate_at(plan, arm, budget, done) is None and budget in plan.budgets_of(arm)
      swept_already = not plan.arms[arm].rate_of and budget == plan.budgets_of(arm)[0]
      if is_open:
        runs += [Run(arm, budget, middle, seed) for seed in range(swept_already, num_seeds)]
  return runs


def _round(rate: float) -> float:
  """To three digits, which is what names of folders and tables show."""
  return float(f"{rate:.3g}")
