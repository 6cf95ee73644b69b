"""Several models at the same tasks: a table, and results with paired differences."""

from collections.abc import Mapping, Sequence
from typing import Any

from blt_jax.evals import paired
from blt_jax.evals.paired import Difference
from blt_jax.evals.report import finite
from blt_jax.evals.suite import Report
from blt_jax.evals.variants import Variant

_HEAD = (
  f"{'task':20} {'metric':24} {'model':20} {'value':>8} {'error':>7}  "
  f"{'difference':>10} {'error':>7}  95 %"
)


def to_table(reports: Mapping[str, Report]) -> str:
  """A line for each number of each model, with its difference from the first model's.

  Args:
    reports: label of a model -> what it did.
  """
  first, *others = reports
  told = {label: paired.differences(reports[first], reports[label]) for label in others}
  lines = [_HEAD]
  for task, report in reports[first].items():
    for metric in report.summary:
      star = "*" if metric == report.task.metric else " "
      for label in reports:
        value, error = reports[label][task].summary[metric]
        difference = _show(told[label][task][metric]) if label in told else ""
        start = f"{task:20} {metric + star:24} {label:20} {value:8.4f} {error:7.4f}"
        lines.append(f"{start}  {difference}".rstrip())
  return "\n".join(lines)


def _show(difference: Difference) -> str:
  low, high = difference.interval
  return f"{difference.value:+10.4f} {difference.error:7.4f}  {low:+.4f} {high:+.4f}"


def _as_json(difference: Difference) -> dict[str, Any]:
  return {
    "value": finite(difference.value),
    "standard_error": finite(difference.error),
    "interval_95": [finite(end) for end in difference.interval],
  }


def patches_table(variants: Sequence[Variant]) -> str:
  """A line for each model and task: threshold, bytes per patch, patches per item."""
  lines = []
  for variant in variants:
    rule = "none" if variant.rule is None else f"{variant.rule:.4f} nats"
    for task, use in variant.patches.items():
      lines.append(
        f"{task:20} {variant.label:20} threshold {rule}, {use.bytes_per_patch:.2f} bytes per "
        f"patch, {use.patches_per_item:.1f} patches per item"
      )
  return "\n".join(lines)


def to_results(
  reports: Mapping[str, Report], results: Mapping[str, dict[str, Any]]
) -> dict[str, Any]:
  """The results of all models, and the differences of each from the first.

  Args:
    reports: label of a model -> what it did.
    results: label -> the same as JSON holds it.
  """
  first, *others = reports
  return {
    "models": dict(results),
    "differences_from": first,
    "differences": {
      label: {
        task: {metric: _as_json(found) for metric, found in by_metric.items()}
        for task, by_metric in paired.differences(reports[first], reports[label]).items()
      }
      for label in others
    },
  }
