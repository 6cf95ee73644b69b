"""What a run tells while it trains: loss, speed, patches, to files and the console."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from blt_jax import config as settings
from blt_jax import kinds
from blt_jax.ops import device
from blt_jax.parallel import distributed
from blt_jax.runs import metrics
from blt_jax.runs.loss_guard import LossGuard
from blt_jax.runs.stopwatch import Stopwatch
from blt_jax.runs.warning_signs import WarningSigns, make_warning_signs
from blt_jax.training import optim

Batch = Mapping[str, jax.Array]


class RunLog:
  """Adds up the metrics of steps and reports every few, one step late.

  Reading a metric waits for its step; reading those of the steps before the newest
  leaves the device busy meanwhile.
  """

  def __init__(
    self,
    num_steps: int,
    every_steps: int,
    rates: Mapping[str, Callable[[int], Any]],
    speed: metrics.Speed,
    guard: LossGuard,
    stopwatch: Stopwatch,
    writer: metrics.MetricWriter | None,
    signs: WarningSigns | None = None,
  ):
    """Takes how often to report, what to compute and where to write, if anywhere.

    Args:
      num_steps: of the run.
      every_steps: from one report to the next.
      rates: learning rates by name, of a step counted from 0.
      speed: rates from sums.
      guard: looks at every step.
      stopwatch: measures.
      writer: None on all processes but the lead.
      signs: what to warn of; likewise.
    """
    self._num_steps, self._every = num_steps, every_steps
    self._rates, self._speed = rates, speed
    self._guard, self._stopwatch = guard, stopwatch
    self._writer, self._signs = writer, signs
    self._pending: list[tuple[int, Any, Batch]] = []
    self._is_first = True
    self._warned = False

  def start(self, step: int, params: Any) -> None:
    """Says what is trained, from which step on."""
    if step:
      logging.info("Continuing at step %d of %d.", step, self._num_steps)
    num_params = sum(x.size for x in jax.tree.leaves(params))
    kernels = device.kernels_of(jax.devices()[0])
    logging.info(
      "%s parameters, %d devices, kernels: %s.", f"{num_params:,}", jax.device_count(), kernels
    )
    if step < self._num_steps:
      logging.info("The first step compiles, which takes a while.")
    self._look()

  def add(self, step: int, step_metrics: Mapping[str, jax.Array], batch: Batch) -> None:
    """Takes a step just dispatched; reports the steps before it when enough are there.

    Raises:
      FloatingPointError: as `LossGuard.check`, of an earlier step.
    """
    self._pending.append((step, step_metrics, batch))
    if self._is_first:  # it compiled
      self._stopwatch.restart()
      self._is_first = False
    if len(self._pending) > self._every:
      self._report(self._every)

  def flush(self) -> None:
    """Reports all steps so far; what follows may rely on their being good.

    Raises:
      FloatingPointError: as `LossGuard.check`.
    """
    if self._pending:
      self._report(len(self._pending))

  def evaluation(self, step: int, numbers: metrics.Numbers) -> None:
    """Reports held-out numbers; those of a step that has some stay as they were written."""
    is_written = self._writer is not None and self._writer.has_evaluation(step)
    if not is_written:
      self._write(step, "eval", numbers)
    note = " (metrics.jsonl keeps what it had)" if is_written else ""
    logging.info("Held-out bits per byte at step %d: %.4f%s", step, numbers["bpb"], note)
    self._look(
      train_loss=self._guard.usual,
      heldout_loss=numbers.get("loss"),
      heldout_slotless=numbers.get("slotless_inputs"),
    )

  def close(self) -> None:
    """Writes out what is buffered."""
    if self._writer is not None:
      self._writer.close()

  def _report(self, count: int) -> None:
    done, self._pending = self._pending[:count], self._pending[count:]
    sums = jax.device_get([step_metrics for _, step_metrics, _ in done])
    for (step, _, batch), of_step in zip(done, sums, strict=True):
      self._guard.check(step, of_step, batch)
    step = done[-1][0]
    totals = {k: np.sum([s[k] for s in sums], dtype=np.float64) for k in sums[0]}
    self._warned = self._warned or metrics.warn_of_few_documents(totals)
    times = self._stopwatch.lap(count)
    numbers = {
      **metrics.summarise(totals),
      "grad_norm": float(sums[-1]["grad_norm"]),
      **{name: float(rate(step - 1)) for name, rate in self._rates.items()},
      **{k: float(x) for k, x in sums[-1].items() if k.startswith(("update_ratio/", "extra/"))},
      **self._speed(totals, times.pop("seconds")),
      **times,
    }
    self._write(step, "train", numbers)
    logging.info(metrics.progress_line(step, self._num_steps, numbers, count))
    self._look(**numbers)

  def _write(self, step: int, kind: str, numbers: metrics.Numbers) -> None:
    if self._writer is not None:
      self._writer.write(step, kind, numbers)

  def _look(self, **numbers: float | None) -> None:
    if self._signs is not None:
      self._signs.look(**numbers)


def make_run_log(
  config: ConfigDict,
  model: nn.Module,
  mesh: Mesh,
  learning_rate: Callable[[int], Any],
  stopwatch: Stopwatch,
  calibration: Mapping[str, float],
) -> RunLog:
  """The log of a run; only process 0 writes, and warns of signs in what it writes."""
  workdir, section = config.workdir, config.logging
  holds_pieces = kinds.find_kind(config.model.kind).reads_pieces
  devices = mesh.devices.ravel().tolist()
  writer = signs = None
  if distributed.is_lead():
    writer = metrics.MetricWriter(workdir, section.tensorboard)
    signs = make_warning_signs(config, calibration)
  rates = {"learning_rate": learning_rate} | {
    f"learning_rate/{group.pattern}": optim.group_rate(learning_rate, group)
    for group in settings.make_groups(config)
  }
  return RunLog(
    num_steps=config.num_steps,
    every_steps=section.every_steps,
    rates=rates,
    speed=metrics.Speed(model.config, config.data.seq_len, devices, holds_pieces),
    guard=LossGuard(workdir, section.max_loss_jump),
    stopwatch=stopwatch,
    writer=writer,
    signs=signs,
  )
