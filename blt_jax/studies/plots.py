"""Pictures of a study: bits per byte over training FLOPs, over inference FLOPs, over bytes."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from blt_jax.cli import plots
from blt_jax.storage import atomic
from blt_jax.studies import tables
from blt_jax.studies.records import Record
from blt_jax.studies.tables import Comparison

_BPB = "Held-out bits per byte"


def draw_all(folder: str, records: Sequence[Record], rows: Sequence[Comparison]) -> list[str]:
  """Writes all pictures; returns their names.

  Args:
    folder: that exists.
    records: of `tables.best_of_each`.
    rows: of `tables.compare`.

  Raises:
    ImportError: matplotlib is missing.
  """
  pictures: dict[str, Callable[[Any], None]] = {
    "training_flops.png": lambda axes: _over_training(axes, records, rows),
    "inference_flops.png": lambda axes: _over_inference(axes, rows),
    "bytes_seen.png": lambda axes: _over_bytes(axes, records),
  }
  pyplot = plots.import_pyplot()
  for name, draw in pictures.items():
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    draw(axes)
    axes.set_ylabel(_BPB)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", bbox_to_anchor=(1.01, 1), loc="upper left")
    with atomic.new_file(f"{folder}/{name}") as file:
      figure.savefig(file, dpi=150, format="png")
    pyplot.close(figure)
  return list(pictures)


def _colors(arms: Sequence[str]) -> dict[str, Any]:
  """The same color for an arm in all pictures."""
  names = sorted(set(arms))
  return {name: f"C{i % 10}" for i, name in enumerate(names)}


def _errors(row: Comparison) -> np.ndarray:
  """How far the interval goes below and above, [2, 1]; 0 where there is none."""
  ends = [row.bpb.value - row.bpb.low, row.bpb.high - row.bpb.value]
  return np.nan_to_num(np.array(ends))[:, None]


def _cut_intervals(axes: Any, rows: Sequence[Comparison]) -> None:
  """Keeps to the values, since an interval of two seeds may be many times as wide."""
  values = [row.bpb.value for row in rows]
  room = 0.15 * (max(values) - min(values))
  if room:
    axes.set_ylim(min(values) - room, max(values) + room)


def _over_training(axes: Any, records: Sequence[Record], rows: Sequence[Comparison]) -> None:
  """Means over seeds with intervals, and the fits of those with several budgets."""
  lines = tables.fit_curves(records)
  for arm, color in _colors([r.arm for r in records]).items():
    for i, row in enumerate(own := [r for r in rows if r.first.arm == arm]):
      axes.errorbar(
        row.budget, row.bpb.value, _errors(row), fmt="o", capsize=3, color=color,
        label=arm if i == 0 else None,
      )  # fmt: skip
    if arm in lines:
      logs = np.linspace(np.log10(own[0].budget), np.log10(own[-1].budget), 50)
      axes.plot(10**logs, [10 ** lines[arm](x) for x in logs], color=color, alpha=0.6)
  _cut_intervals(axes, rows)
  axes.set_xscale("log")
  axes.set_xlabel("Training FLOPs (paper's count, without the entropy model)")


def _over_inference(axes: Any, rows: Sequence[Comparison]) -> None:
  """A filled point without the entropy model, joined to an open one with it."""
  colors = _colors([r.first.arm for r in rows])
  for row in rows:
    cost, color = row.first.cost, colors[row.first.arm]
    label = f"{row.first.arm}, {row.budget:.0e}"
    axes.errorbar(
      cost.paper / 1e6, row.bpb.value, _errors(row), fmt="o", capsize=3, color=color,
      label=label,
    )  # fmt: skip
    if cost.entropy_paper:
      ends = [cost.paper / 1e6, cost.whole_paper / 1e6]
      axes.plot(ends, [row.bpb.value] * 2, ":", color=color)
      axes.plot(ends[1], row.bpb.value, "o", mfc="none", color=color)
  _cut_intervals(axes, rows)
  axes.set_xlabel("MFLOPs per byte at inference (open: with the entropy model)")


def _over_bytes(axes: Any, records: Sequence[Record]) -> None:
  """Evaluations on the way, of the first seed at the largest budget of each arm."""
  for arm, color in _colors([r.arm for r in records]).items():
    own = max((r for r in records if r.arm == arm), key=lambda r: (r.budget, -r.seed))
    axes.plot(*zip(*own.curve, strict=True), "o-", ms=3, color=color, label=arm)
  axes.set_xscale("log")
  axes.set_xlabel("Bytes of text seen")
