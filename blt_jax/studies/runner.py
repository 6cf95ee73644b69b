"""Trains the runs of a study one after another; several processes may share them."""

import contextlib
import os
import time
from collections.abc import Mapping, Sequence

from absl import logging

from blt_jax.parallel import distributed
from blt_jax.runs import lock, loop
from blt_jax.runs.program import Programs
from blt_jax.studies import children, sweep
from blt_jax.studies.study import Measured, Study
from blt_jax.studies.sweep import Run

_POLL = 5.0  # seconds between looks at what other processes do


def work(study: Study, measured: Mapping[str, Measured]) -> bool:
  """Trains what is missing, until nothing is.

  A run that another process trains is left to it.

  Args:
    study: its entropy models and the like are made.
    measured: of all arms that are trained.

  Returns:
    Whether all is done; False if this process was asked to stop.

  Raises:
    ValueError: as `loop.train`.
  """
  clock, programs = _Clock(study, measured), Programs()
  while True:
    done = study.done()
    runs = [r for r in sweep.wanted(study.plan, study.arms, done) if r not in done]
    if not runs:
      return True
    clock.tell(done)
    is_busy = False
    for run in runs:
      with contextlib.suppress(lock.InUseError), lock.hold(study.claim(run)):
        if not _train(study, run, measured[run.arm], programs):
          return False
        is_busy = True
        break
    if not is_busy:  # other processes have them all
      time.sleep(_POLL)
    if distributed.preempted(step=0):
      return False


def _train(study: Study, run: Run, measured: Measured, programs: Programs) -> bool:
  """Trains a run; False if it was stopped before its end."""
  logging.info("== %s", run.name)
  config = study.config_of(run, measured)
  try:
    return loop.train(config, programs=programs) is not None
  except FloatingPointError as error:
    logging.warning("%s diverged, which is its result: %s", run.name, error)
    study.note_divergence(run, str(error))
    return True


class _Clock:
  """Says how far a study is, and when it may be done."""

  def __init__(self, study: Study, measured: Mapping[str, Measured]):
    self._study, self._measured = study, measured
    self._since: float | None = None
    self._before = 0.0

  def tell(self, done: sweep.Done) -> None:
    """Logs it, by measured times of steps, corrected by how long runs took so far."""
    runs = sweep.foreseen(self._study.plan, self._study.arms, done)
    past = sum(seconds_of(self._study, r, self._measured[r.arm]) for r in runs if r in done)
    left = sum(seconds_of(self._study, r, self._measured[r.arm]) for r in runs if r not in done)
    now = time.monotonic()
    if self._since is None:
      self._since, self._before = now, past
    ours = past - self._before
    if ours > 0:
      left *= (now - self._since) / ours  # other processes' share of the work is in it
    count = sum(run in done for run in runs)
    logging.info(
      "Study: %d of %d runs are done, about %s left.", count, len(runs), duration(left)
    )


def seconds_of(study: Study, run: Run, measured: Measured) -> float:
  """How long a run takes by what was measured, compiling left out."""
  steps = study.num_steps(run, measured)
  evaluations = min(study.plan.evaluations, steps)
  return steps * measured.step_seconds + evaluations * measured.evaluation_seconds


def duration(seconds: float) -> str:
  """Hours, minutes or seconds, as one reads them."""
  if seconds >= 5400:
    return f"{seconds / 3600:.1f} hours"
  return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"


def spread(arguments: Sequence[str], gpus: Sequence[str], home: str) -> None:
  """Runs the command once for each GPU, side by side, and waits for all.

  Args:
    arguments: of `python -m blt_jax.study`.
    gpus: what each process gets as CUDA_VISIBLE_DEVICES.
    home: folder of the study, where each writes its log.

  Raises:
    ValueError: one failed.
  """
  with children.ending_with_this() as processes:
    for gpu in gpus:
      with open(f"{home}/gpu_{gpu}.log", "a") as log:
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": gpu}
        processes.append(
          children.start("study", arguments, stdout=log, stderr=log, env=environment)
        )
      logging.info("GPU %s writes %s/gpu_%s.log.", gpu, home, gpu)
    failed = [gpu for gpu, p in zip(gpus, processes, strict=True) if p.wait()]
  if failed:
    raise ValueError(f"GPU {failed[0]} ended early; {home}/gpu_{failed[0]}.log says why.")
