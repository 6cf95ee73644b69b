"""Pictures of a study: differences, and bits per byte over FLOPs of both kinds and bytes."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from blt_jax.cli import plots
from blt_jax.storage import atomic
from blt_jax.studies import tables
from blt_jax.studies.fits import Interval
from blt_jax.studies.records import Record
from blt_jax.studies.tables import Comparison

_BPB = "Held-out bits per byte"
_DIFFERENCES = "differences.png"


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
  for name, draw in pictures.items():
    with _new_figure(f"{folder}/{name}", (8, 5)) as axes:
      draw(axes)
      axes.set_ylabel(_BPB)
      axes.legend(fontsize="small", bbox_to_anchor=(1.01, 1), loc="upper left")
  if compared := _with_differences(rows):
    with _new_figure(f"{folder}/{_DIFFERENCES}", (8, 1.5 + len(compared) / 4)) as axes:
      _draw_differences(axes, compared)
  return [_DIFFERENCES] * bool(compared) + list(pictures)


@contextlib.contextmanager
def _new_figure(path: str, size: tuple[float, float]) -> Iterator[Any]:
  """Axes to draw in, which are in the file at the end."""
  pyplot = plots.import_pyplot()
  figure, axes = pyplot.subplots(figsize=size, layout="constrained")
  axes.grid(alpha=0.3)
  yield axes
  with atomic.new_file(path) as file:
    figure.savefig(file, dpi=150, format="png")
  pyplot.close(figure)


def _with_differences(rows: Sequence[Comparison]) -> list[Comparison]:
  """Those at the largest budget that has any, the best first."""
  found = [row for row in rows if row.differences]
  largest = max((row.budget for row in found), default=0)
  return sorted(
    (r for r in found if r.budget == largest), key=lambda row: np.mean(row.differences)
  )


def _draw_differences(axes: Any, rows: Sequence[Comparison]) -> None:
  """A ring for each pair of seeds, and where there are several their mean with interval."""
  for y, row in enumerate(rows):
    axes.plot(row.differences, [y] * len(row.differences), "o", mfc="none", color="C1")
    if len(row.differences) > 1 and (mean := row.difference):
      axes.errorbar(mean.value, y, xerr=_errors(mean), fmt="o", capsize=3, color="C0")
  axes.axvline(0, color="black", linewidth=1)
  axes.set_yticks(range(len(rows)), [row.first.arm for row in rows])
  axes.invert_yaxis()
  axes.set_xlim(_room([0.0, *(d for row in rows for d in row.differences)]))
  axes.set_xlabel(f"Minus the reference, bits per byte, at {rows[0].budget:.3g} training FLOPs")


def _colors(arms: Sequence[str]) -> dict[str, Any]:
  """The same color for an arm in all pictures."""
  names = sorted(set(arms))
  return {name: f"C{i % 10}" for i, name in enumerate(names)}


def _errors(interval: Interval) -> np.ndarray:
  """How far it goes below and above, [2, 1]; 0 where there is none."""
  ends = [interval.value - interval.low, interval.high - interval.value]
  return np.nan_to_num(np.array(ends))[:, None]


def _room(values: Sequence[float]) -> tuple[float, float]:
  """Limits that keep to the values: an interval of two seeds may be many times as wide."""
  room = 0.15 * (max(values) - min(values)) or 0.1
  return min(values) - room, max(values) + room


def _over_training(axes: Any, records: Sequence[Record], rows: Sequence[Comparison]) -> None:
  """Means over seeds with intervals, and the fits of those with several budgets."""
  lines = tables.fit_curves(records)
  for arm, color in _colors([r.arm for r in records]).items():
    for i, row in enumerate(own := [r for r in rows if r.first.arm == arm]):
      axes.errorbar(
        row.budget, row.bpb.value, _errors(row.bpb), fmt="o", capsize=3, color=color,
        label=arm if i == 0 else None,
      )  # fmt: skip
    if arm in lines:
      logs = np.linspace(np.log10(own[0].budget), np.log10(own[-1].budget), 50)
      axes.plot(10**logs, [10 ** lines[arm](x) for x in logs], color=color, alpha=0.6)
  axes.set_ylim(_room([row.bpb.value for row in rows]))
  axes.set_xscale("log")
  axes.set_xlabel("Training FLOPs (paper's count, without the entropy model)")


def _over_inference(axes: Any, rows: Sequence[Comparison]) -> None:
  """A filled point without the entropy model, joined to an open one with it."""
  colors = _colors([r.first.arm for r in rows])
  for row in rows:
    cost, color = row.first.cost, colors[row.first.arm]
    label = f"{row.first.arm}, {row.budget:.0e}"
    axes.errorbar(
      cost.paper / 1e6, row.bpb.value, _errors(row.bpb), fmt="o", capsize=3, color=color,
      label=label,
    )  # fmt: skip
    if cost.entropy_paper:
      ends = [cost.paper / 1e6, cost.whole_paper / 1e6]
      axes.plot(ends, [row.bpb.value] * 2, ":", color=color)
      axes.plot(ends[1], row.bpb.value, "o", mfc="none", color=color)
  axes.set_ylim(_room([row.bpb.value for row in rows]))
  axes.set_xlabel("MFLOPs per byte at inference (open: with the entropy model)")


def _over_bytes(axes: Any, records: Sequence[Record]) -> None:
  """Evaluations on the way, of the first seed at the largest budget of each arm."""
  for arm, color in _colors([r.arm for r in records]).items():
    own = max((r for r in records if r.arm == arm), key=lambda r: (r.budget, -r.seed))
    axes.plot(*zip(*own.curve, strict=True), "o-", ms=3, color=color, label=arm)
  axes.set_xscale("log")
  axes.set_xlabel("Bytes of text seen")
