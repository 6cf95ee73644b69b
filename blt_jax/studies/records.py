"""What runs have shown so far, read from their settings and metrics alone."""

import contextlib
import dataclasses
import json
import math
import os
from typing import Any, NamedTuple

from blt_jax.runs import folder
from blt_jax.storage import files
from blt_jax.storage.folders import Folder
from blt_jax.studies import cost

_METRICS = "metrics.jsonl"
Row = dict[str, Any]


class Point(NamedTuple):
  """An evaluation on the way."""

  bytes: float  # of text that the run had learned from
  bpb: float


@dataclasses.dataclass(frozen=True)
class Record:
  """A run that is done.

  Attributes:
    arm: what it is an example of.
    budget: training FLOPs that it was to have; of a run outside a study those that it had.
    rate: peak learning rate.
    seed: of parameters and data.
    bpb: held-out bits per byte at the end.
    curve: evaluations, in order.
    patch_size: mean bytes per patch, or per piece, of its training text.
    step_seconds: mean time of a step.
    cost: of a byte.
    folder: of the run.
  """

  arm: str
  budget: float
  rate: float
  seed: int
  bpb: float
  curve: tuple[Point, ...]
  patch_size: float
  step_seconds: float
  cost: cost.Cost
  folder: str

  @property
  def training_flops(self) -> float:
    """What it really took, by the paper's count, without the entropy model."""
    return 3 * self.cost.paper * self.curve[-1].bytes


def read_rows(workdir: str | os.PathLike) -> list[Row]:
  """Lines of a run's metrics, in the order of steps; of a step that ran again the last."""
  home = Folder(workdir)
  if not home.exists(_METRICS):
    return []
  found: dict[tuple[int, str], Row] = {}
  for line in files.read_bytes(home.path_of(_METRICS)).splitlines():
    with contextlib.suppress(ValueError):  # cut short by a kill
      row = json.loads(line)
      if isinstance(row, dict) and "step" in row:
        found[row["step"], row.get("kind", "")] = row
  return [found[key] for key in sorted(found)]


def final_bpb(workdir: str | os.PathLike, num_steps: int) -> float | None:
  """Held-out bits per byte after a run's last step; None if it has not come there."""
  rows = (r for r in reversed(read_rows(workdir)) if r["kind"] == "eval")
  return next((r["bpb"] for r in rows if r["step"] >= num_steps), None)


def read(workdir: str, arm: str = "", budget: float | None = None) -> Record:
  """Reads a run.

  Args:
    workdir: of the run.
    arm: its label; by default the folder's name.
    budget: FLOPs that it was to have; by default those that it took.

  Raises:
    FileNotFoundError: the folder holds no run.
    ValueError: it has not been evaluated yet, or did not train.
  """
  config, rows = folder.load_config(workdir), read_rows(workdir)
  trained = [r for r in rows if r["kind"] == "train"]
  evaluated = [r for r in rows if r["kind"] == "eval"]
  if not trained or not evaluated:
    raise ValueError(
      f"{workdir} has no {'evaluation' if trained else 'step'} in its {_METRICS} yet; let it "
      "train to its end first."
    )
  size = config.data.batch_size * config.data.seq_len
  rate = sum(map(_bytes_per_slot, trained)) / len(trained) * size  # bytes per step
  curve = [Point(r["step"] * rate, r["bpb"]) for r in evaluated]
  patch_size = _harmonic_mean([r["patch_size"] for r in trained])
  record = Record(
    arm=arm or os.path.basename(workdir.rstrip("/")),
    budget=budget or 0.0,
    rate=config.optimizer.learning_rate,
    seed=config.seed,
    bpb=curve[-1].bpb,
    curve=tuple(curve),
    patch_size=patch_size,
    step_seconds=sum(r["step_seconds"] for r in trained) / len(trained),
    cost=cost.of_run(config, patch_size),
    folder=workdir,
  )
  return record if budget else dataclasses.replace(record, budget=record.training_flops)


def _bytes_per_slot(row: Row) -> float:
  """Of a batch; nats per target over nats per byte are bytes per target."""
  return row["byte_slot_use"] * row["loss"] / (row["bpb"] * math.log(2))


def _harmonic_mean(sizes: list[float]) -> float:
  """Each line of metrics has about as many bytes, and so patches in inverse proportion."""
  return len(sizes) / sum(1 / max(size, 1.0) for size in sizes)
