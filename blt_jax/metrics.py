"""Numbers of a run: from sums to rates, to JSON lines, TensorBoard and the console."""

import json
import math
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import tensorboardX

Numbers = dict[str, float]


def summarise(sums: Mapping[str, float]) -> Numbers:
  """Turns the sums of `steps.sums` into rates.

  Returns:
    `loss` in nats per target; `bpb`, bits per byte: the cross entropy of all targets,
    EOS included, over the number of bytes; `patch_size` in bytes per patch; the shares
    of byte slots with a target and of patch slots with a patch.
  """
  return {
    "loss": float(sums["nats"] / max(sums["targets"], 1)),
    "bpb": float(sums["nats"] / math.log(2) / max(sums["bytes"], 1)),
    "patch_size": float(sums["inputs"] / max(sums["patches"], 1)),
    "byte_slot_use": float(sums["targets"] / sums["byte_slots"]),
    "patch_slot_use": float(sums["patches"] / sums["patch_slots"]),
  }


class Meter:
  """Adds up the metrics of steps and reports every few, one step late.

  Reading a metric waits for its step; reading those of the steps before the newest
  leaves the device busy meanwhile.
  """

  def __init__(self, every_steps: int):
    self._every = every_steps
    self._pending: list[Any] = []
    self._since = time.monotonic()
    self._waited = 0.0

  def add(self, metrics: Mapping[str, jax.Array], waited: float) -> Numbers | None:
    """Takes the metrics of the newest step; reports when enough are there.

    Args:
      metrics: of the step, on the devices.
      waited: seconds that the step waited for its batch.
    """
    self._pending.append(metrics)
    self._waited += waited
    return self._report(self._every) if len(self._pending) > self._every else None

  def flush(self) -> Numbers | None:
    """Reports what is left."""
    return self._report(len(self._pending)) if self._pending else None

  def restart_clock(self) -> None:
    """Leaves the time since the last report out of the rates."""
    self._since, self._waited = time.monotonic(), 0.0

  def _report(self, count: int) -> Numbers:
    steps = jax.device_get(self._pending[:count])
    del self._pending[:count]
    if not all(np.isfinite(s["nats"]) for s in steps):
      raise FloatingPointError(
        f"The loss became NaN or infinite within the last {count} steps; lower "
        "config.optimizer.learning_rate, or continue from the newest checkpoint."
      )
    totals = {k: np.sum([s[k] for s in steps], dtype=np.float64) for k in steps[0]}
    seconds = time.monotonic() - self._since
    waited, self._waited = self._waited, 0.0
    self._since += seconds
    return summarise(totals) | {
      "grad_norm": float(steps[-1]["grad_norm"]),
      "bytes_per_second": float(totals["bytes"] / seconds),
      "step_seconds": seconds / count,
      "data_wait": waited / seconds,  # share of the time
    }


class MetricWriter:
  """Writes numbers to `metrics.jsonl` and TensorBoard events in a run's folder."""

  def __init__(self, workdir: pathlib.Path, use_tensorboard: bool = True):
    self._file = (workdir / "metrics.jsonl").open("a", buffering=1)
    self._board = tensorboardX.SummaryWriter(str(workdir)) if use_tensorboard else None

  def write(self, step: int, prefix: str, numbers: Mapping[str, float]) -> None:
    """Writes numbers under `prefix`, "train" or "eval", as of `step`."""
    self._file.write(json.dumps({"step": step, "kind": prefix, **numbers}) + "\n")
    if self._board is not None:
      for name, value in numbers.items():
        self._board.add_scalar(f"{prefix}/{name}", value, step)

  def close(self) -> None:
    """Writes out what is buffered."""
    self._file.close()
    if self._board is not None:
      self._board.close()


def progress_line(step: int, num_steps: int, numbers: Mapping[str, float]) -> str:
  """One line for the console, with the time that is left."""
  left = (num_steps - step) * numbers["step_seconds"]
  minutes, seconds = divmod(round(left), 60)
  return (
    f"step {step}/{num_steps}  loss {numbers['loss']:.3f}  bpb {numbers['bpb']:.3f}  "
    f"{numbers['bytes_per_second'] / 1000:.1f} kB/s  "
    f"patch {numbers['patch_size']:.2f} B  data wait {numbers['data_wait']:.1%}  "
    f"lr {numbers['learning_rate']:.2e}  ETA {minutes}:{seconds:02d}"
  )
