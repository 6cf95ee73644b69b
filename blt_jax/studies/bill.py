"""What a study will cost: sizes, FLOPs, bytes, epochs, steps, time."""

from collections.abc import Mapping, Sequence

from blt_jax import config as settings
from blt_jax import kinds
from blt_jax.studies import cost, sweep
from blt_jax.studies.measure import TextSize
from blt_jax.studies.runner import duration, seconds_of
from blt_jax.studies.study import Measured, Study
from blt_jax.studies.sweep import Run

_ARMS = (
  f"{'arm':20} {'parameters':>12} {'bytes/patch':>11} {'paper':>9} {'real':>9} {'+entropy':>9} "
  f"{'step':>9} {'compile':>8}"
)
_RUNS = (
  f"{'arm':20} {'FLOPs':>9} {'runs':>5} {'bytes of each':>14} {'epochs':>7} {'steps':>8} time"
)


def to_text(
  study: Study,
  measured: Mapping[str, Measured],
  text: TextSize,
  stood_in: Sequence[str] = (),
) -> str:
  """Tables of arms and of runs, and the time of all of it.

  Args:
    study: to pay for.
    measured: of `Study.active_configs`.
    text: sizes of its text.
    stood_in: arms that were measured with patches of one size.
  """
  runs = sweep.foreseen(study.plan, study.arms, done := study.done())
  left = sum(seconds_of(study, r, measured[r.arm]) for r in runs if r not in done)
  compiling = sum(m.compile_seconds for m in measured.values())
  lines = [
    f"Text: {text.train:,} bytes to learn from, {text.heldout:,} held out.",
    "",
    "MFLOPs per byte of the forward pass, by the paper's count, by real sizes, and by the "
    "paper's count with the entropy model; seconds of a step and of compiling it:",
    _ARMS,
    *(_arm(name, found) for name, found in measured.items()),
    "",
    _RUNS,
    *_runs(study, measured, text, runs),
    "",
    f"{len(runs)} runs, {sum(r in done for r in runs)} of them done; about "
    f"{duration(left)} on one such device, and {duration(compiling)} of compiling for each "
    "budget. Sweeps may grow.",
  ]
  if stood_in:
    lines.append(
      f"Not made yet are the entropies of {', '.join(stood_in)}, which were measured with "
      "patches of one size; making them comes on top."
    )
  return "\n".join(lines)


def _arm(name: str, m: Measured) -> str:
  costs = [f"{x / 1e6:9.4g}" for x in (m.cost.paper, m.cost.real, m.cost.whole_paper)]
  return (
    f"{name:20} {m.parameters:12,d} {m.patch_size:11.2f} {' '.join(costs)} "
    f"{m.step_seconds:9.4f} {m.compile_seconds:8.1f}"
  )


def _runs(study, measured, text, runs: Sequence[Run]) -> list[str]:
  """A line for each arm and budget."""
  lines = []
  for arm, budget in dict.fromkeys((run.arm, run.budget) for run in runs):
    own = [run for run in runs if (run.arm, run.budget) == (arm, budget)]
    steps, seconds = (
      study.num_steps(own[0], measured[arm]),
      sum(seconds_of(study, run, measured[arm]) for run in own),
    )
    size = steps * measured[arm].bytes_per_step
    lines.append(
      f"{arm:20} {budget:9.3g} {len(own):5d} {size:14,.0f} {size / text.train:7.2f} "
      f"{steps:8,d} {duration(seconds)}"
    )
  return lines


def check_early(study: Study, text: TextSize) -> None:
  """Checks budgets before anything is made, of arms whose cost needs no measuring.

  Raises:
    ValueError: a budget is less than a step, or the text too little.
  """
  for name, config in study.active_configs.items():
    budgets = study.plan.budgets_of(name)
    if name not in study.arms:  # it is swept alone
      budgets = budgets[:1]
    model = settings.make_model_config(config.model)
    stated = settings.stated_patch_size(config.patching)
    size = study.plan.arms[name].bytes_per_patch or stated
    costs = [
      kinds.flops_per_byte(model, s, config.data.seq_len) for s in (size or 2, size or 8)
    ]
    if costs[0] == costs[1]:
      row_bytes = config.data.batch_size * config.data.seq_len
      cost.num_steps(budgets[0], costs[0], row_bytes, name)
      _check_text(study, name, budgets[-1], budgets[-1] / (3 * costs[0]), text)


def check_epochs(study: Study, measured: Mapping[str, Measured], text: TextSize) -> None:
  """Raises ValueError where a run would read its text too often."""
  for run in sweep.foreseen(study.plan, study.arms, study.done()):
    size = study.num_steps(run, measured[run.arm]) * measured[run.arm].bytes_per_step
    _check_text(study, run.arm, run.budget, size, text)


def _check_text(study: Study, arm: str, budget: float, size: float, text: TextSize) -> None:
  epochs = size / text.train
  if epochs > study.plan.max_epochs:
    raise ValueError(
      f"There is too little text: at {budget:g} FLOPs arm {arm!r} would read its "
      f"{text.train:,} bytes {epochs:.1f} times, and the plan's max_epochs is "
      f"{study.plan.max_epochs:g}. Give more text, or smaller budgets."
    )
