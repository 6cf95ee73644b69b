"""Pictures of what the suite found: bars, curves over thresholds, the cost of noise."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from blt_jax.cli import plots
from blt_jax.evals import noise
from blt_jax.evals.noised import STRENGTHS, NoisedText
from blt_jax.evals.suite import Report
from blt_jax.evals.variants import Variant
from blt_jax.storage import atomic

Reports = Mapping[str, Report]  # label of a model -> what it did


def draw(reports: Reports, variants: Sequence[Variant], path: str) -> None:
  """Draws the metric that each task is quoted by, and what noise costs.

  One model under several thresholds gives curves over thresholds and over patches per item;
  other models give bars. Lines at them are intervals of 95 %.

  Args:
    reports: of the models.
    variants: the models, in the same order.
    path: of the picture.

  Raises:
    ImportError: matplotlib is missing.
  """
  pyplot = plots.import_pyplot()
  is_curve = len({v.run for v in variants}) == 1 and len(variants) > 1
  over = (False, True) if all(v.patches for v in variants) else (False,)  # patches are known
  panels: list[Any] = []  # functions of the axes that they draw on
  for metric, tasks in _by_metric(reports).items():
    if is_curve:
      panels += [_curve(reports, variants, metric, tasks, by_patches=b) for b in over]
    else:
      panels.append(_bars(reports, metric, tasks))
  for name in (n for n in next(iter(reports.values())) if n.endswith("_noise")):
    panels += [_noise_cost(r[name], f"{name} {label}") for label, r in reports.items()]
  panels = [panel for panel in panels if panel is not None]
  columns = 2 if len(panels) > 1 else 1
  lines = -(-len(panels) // columns)
  figure, axes = pyplot.subplots(
    lines, columns, squeeze=False, layout="constrained", figsize=(6 * columns, 4 * lines)
  )
  for panel, one in zip(panels, axes.flat, strict=False):
    panel(one)
  for unused in axes.flat[len(panels) :]:
    unused.set_axis_off()
  with atomic.new_file(path) as file:
    figure.savefig(file, dpi=150)
  pyplot.close(figure)


def _by_metric(reports: Reports) -> dict[str, list[str]]:
  """Metric -> the tasks that are quoted by it."""
  found: dict[str, list[str]] = {}
  for name, told in next(iter(reports.values())).items():
    found.setdefault(told.task.metric, []).append(name)
  return found


def _points(report: Report, metric: str, tasks: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
  """Values [n], and how far their intervals go below and above, [2, n]."""
  values = np.array([report[task].summary[metric].value for task in tasks])
  ends = np.array([report[task].intervals[metric] for task in tasks]).T
  return values, np.maximum(0, [values - ends[0], ends[1] - values])


def _bars(reports: Reports, metric: str, tasks: Sequence[str]):
  def panel(axes: Any) -> None:
    width = 0.8 / len(reports)
    for i, (label, report) in enumerate(reports.items()):
      values, lengths = _points(report, metric, tasks)
      axes.bar(np.arange(len(tasks)) + i * width, values, width, yerr=lengths, label=label)
    axes.set_xticks(np.arange(len(tasks)) + 0.4 - width / 2, tasks, rotation=30, ha="right")
    axes.set_ylabel(metric)
    if len(reports) > 1:
      axes.legend()

  return panel


def _curve(reports, variants, metric, tasks, by_patches: bool):
  """Scores over thresholds, or over patches per item."""

  def panel(axes: Any) -> None:
    for task in tasks:
      places = [v.patches[task].patches_per_item if by_patches else v.rule for v in variants]
      order = np.argsort(places)
      pairs = [_points(report, metric, [task]) for report in reports.values()]
      values = np.concatenate([value for value, _ in pairs])[order]
      lengths = np.concatenate([length for _, length in pairs], axis=1)[:, order]
      axes.errorbar(np.sort(places), values, lengths, marker="o", capsize=3, label=task)
    axes.set_xlabel("Patches per item" if by_patches else "Threshold")
    axes.set_ylabel(metric)
    axes.legend()

  return panel


def _noise_cost(told, title: str):
  """Added bits over the strength of each noise; None for tasks without strengths."""
  if not isinstance(told.task, NoisedText):
    return None

  def panel(axes: Any) -> None:
    for name in noise.NOISES:
      metrics = [told.task.metric_of(name, strength) for strength in STRENGTHS]
      values = [told.summary[m].value for m in metrics]
      ends = np.array([told.intervals[m] for m in metrics]).T
      axes.plot([0, *STRENGTHS], [0, *values], marker="o", label=name)
      axes.fill_between([0, *STRENGTHS], [0, *ends[0]], [0, *ends[1]], alpha=0.2)
    axes.set_xlabel("Share of characters that get the noise")
    axes.set_ylabel("Added bits per clean byte")
    axes.set_title(title)
    axes.legend()

  return panel
