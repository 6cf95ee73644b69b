"""The folder of a study: its plan, what was made and measured, its runs."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Sequence

from ml_collections import ConfigDict

from blt_jax.runs import folder as runs_folder
from blt_jax.storage.folders import Folder
from blt_jax.studies import cost, made, records, sweep
from blt_jax.studies import plan as plans
from blt_jax.studies.plan import Plan
from blt_jax.studies.sweep import Run

_PLAN = "plan.json"
_DIVERGED = "diverged.json"


@dataclasses.dataclass(frozen=True)
class Measured:
  """What an arm is like, measured on its training text and this machine.

  Attributes:
    parameters: how many.
    patch_size: mean bytes per patch, or per piece.
    bytes_per_step: of a batch.
    cost: of a byte.
    step_seconds: of an update.
    evaluation_seconds: of one pass over the held-out text, by the time of a step.
    compile_seconds: of the first update.
  """

  parameters: int
  patch_size: float
  bytes_per_step: float
  cost: cost.Cost
  step_seconds: float
  evaluation_seconds: float
  compile_seconds: float


class Study:
  """A plan in a folder.

  Attributes:
    plan: of the study.
    arms: names of those that are trained now.
    configs: their settings, before anything is made.
    home: the folder.
    made: where tokenizers, entropy models and the like are.
  """

  def __init__(self, plan: Plan, output: str, arms: Sequence[str] = ()):
    """Takes the plan; writes nothing.

    Args:
      plan: of the study.
      output: its folder.
      arms: which of its arms; empty for all.

    Raises:
      ValueError: an unknown arm; settings that cannot be; the folder is of another plan.
    """
    unknown = [name for name in arms if name not in plan.arms]
    if unknown:
      raise ValueError(f"The plan has no arm {unknown[0]!r}; it has {tuple(plan.arms)}.")
    self.plan, self.home = plan, Folder(output)
    self.arms = tuple(arms or plan.arms)
    self.configs = plans.load_arms(plan)
    self.made = made.Made(self.home.path_of("made"))
    self._check_plan()

  @property
  def active_configs(self) -> dict[str, ConfigDict]:
    """Settings of the arms that are trained now and of those that give them their rates."""
    names = dict.fromkeys((*self.arms, *map(self.plan.swept, self.arms)))
    return {name: self.configs[name] for name in names}

  def begin(self) -> None:
    """Makes the folder, and writes the plan into it."""
    self.home.make_writable()
    self.home.write_json(_PLAN, self._to_plain())

  def _to_plain(self) -> dict:
    plain = dataclasses.asdict(self.plan)
    plain["budgets"] = {f"{budget:g}": count for budget, count in self.plan.budgets.items()}
    for part in (*plain["arms"].values(), *plain["entropies"].values()):
      part["config"] = pathlib.Path(part["config"]).name  # wherever it is seen from
    plain["configs"] = {name: runs_folder.to_plain(c) for name, c in self.configs.items()}
    return json.loads(json.dumps(plain))

  def _check_plan(self) -> None:
    if not self.home.exists(_PLAN):
      if self.home.sizes():
        raise ValueError(
          f"{self.home} is not empty and holds no study; choose another --output."
        )
      return
    before, now = self.home.read_json(_PLAN), self._to_plain()
    changed = sorted(_differences(before, now))
    if changed:
      raise ValueError(
        f"{self.home} holds a study of another plan; {'; '.join(changed[:4])}. Choose another "
        "--output, or give the plan that it began with."
      )

  # --- Runs

  def workdir(self, run: Run) -> str:
    """The folder of a run."""
    return self.home.path_of(f"runs/{run.name}")

  def claim(self, run: Run) -> str:
    """A folder that the process holds which trains a run."""
    return self.home.path_of(f"claims/{run.name}")

  def ready_config(self, arm: str) -> ConfigDict:
    """The settings of an arm, with what was made for it."""
    config = self.configs[arm].copy_and_resolve_references()
    made.apply(config, self.plan.arms[arm], self.plan, self.made)
    return config

  def config_of(self, run: Run, measured: Measured) -> ConfigDict:
    """The settings of a run."""
    return plan_run(
      self.ready_config(run.arm), self.plan, run, measured, workdir=self.workdir(run)
    )

  def num_steps(self, run: Run, measured: Measured) -> int:
    """Updates of a run."""
    paper, size = measured.cost.paper, measured.bytes_per_step
    return cost.num_steps(run.budget, paper, size, run.arm)

  def note_divergence(self, run: Run, error: str) -> None:
    """Keeps a run that diverged from being tried again."""
    home = Folder(self.workdir(run))
    home.make()
    home.write_json(_DIVERGED, {"error": error})

  def score(self, run: Run, measured: Measured | None) -> float:
    """Bits per byte at the end of a run; NaN if it is not done, infinite if it diverged."""
    if measured is None:
      return math.nan
    if Folder(self.workdir(run)).exists(_DIVERGED):
      return math.inf
    bpb = records.final_bpb(self.workdir(run), self.num_steps(run, measured))
    return math.nan if bpb is None else bpb

  def done(self) -> dict[Run, float]:
    """All runs that are done, those of extended sweeps included."""
    found: dict[Run, float] = {}
    measured = {arm: self.find_measured(arm) for arm in self.plan.arms}
    while True:  # what is done tells which others are wanted
      runs = sweep.wanted(self.plan, list(self.plan.arms), found)
      scores = {run: self.score(run, measured[run.arm]) for run in runs if run not in found}
      new = {run: score for run, score in scores.items() if not math.isnan(score)}
      if not new:
        return found
      found |= new

  def records(self, done: sweep.Done) -> list[records.Record]:
    """What the runs have shown that are `done`, but those that diverged."""
    return [
      records.read(self.workdir(run), run.arm, run.budget)
      for run, score in done.items()
      if math.isfinite(score)
    ]

  # --- Measurements

  def find_measured(self, arm: str) -> Measured | None:
    """What was measured of an arm; None if nothing was."""
    name = f"measured/{arm}.json"
    if not self.home.exists(name):
      return None
    fields = self.home.read_json(name)
    return Measured(**fields | {"cost": cost.Cost(**fields["cost"])})

  def keep_measured(self, arm: str, measured: Measured) -> None:
    """Writes it down: the number of steps follows from it, and must not change."""
    Folder(self.home.path_of("measured")).make()
    self.home.write_json(f"measured/{arm}.json", dataclasses.asdict(measured))


def plan_run(
  config: ConfigDict, plan: Plan, run: Run, measured: Measured, workdir: str
) -> ConfigDict:
  """Sets what a run of a study has of its own; `config` becomes it."""
  steps = cost.num_steps(run.budget, measured.cost.paper, measured.bytes_per_step, run.arm)
  config.update(workdir=workdir, seed=run.seed, num_steps=steps)
  config.optimizer.learning_rate = run.rate
  config.schedule.warmup_steps = round(plan.warmup * steps)
  every = -(-steps // plan.evaluations)
  config.eval.update(every_steps=every, max_batches=None)
  config.checkpoint.update(every_steps=every, keep=1, best=0)
  config.logging.update(every_steps=max(steps // 50, 1), tensorboard=False)
  return config


def _differences(before: dict, now: dict, prefix: str = "") -> list[str]:
  found = []
  for name in before.keys() | now.keys():
    old, new, whole = before.get(name), now.get(name), f"{prefix}{name}"
    if isinstance(old, dict) and isinstance(new, dict):
      found += _differences(old, new, f"{whole}.")
    elif old != new:
      found.append(f"{whole} was {old!r}, now {new!r}")
  return found
