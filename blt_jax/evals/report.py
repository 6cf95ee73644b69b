"""What the suite found, as a table and as files."""

import hashlib
import importlib.metadata
import json
import math
from typing import Any

from blt_jax.evals import rows
from blt_jax.evals.memory import ITEMS, Memory
from blt_jax.evals.suite import Report, TaskReport
from blt_jax.storage import atomic
from blt_jax.storage.folders import Folder
from blt_jax.storage.paths import Path

_PACKAGES = ("jax", "flax", "numpy")


def to_results(report: Report, data: Path, about: dict[str, Any]) -> dict[str, Any]:
  """All numbers as JSON holds them.

  Args:
    report: of the suite.
    data: the folder that the rows came from.
    about: what else to say: the run, its step, the threshold, the seed.
  """
  versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
  tasks = {name: _task(told, data) for name, told in report.items()}
  return {**about, "versions": versions, "tasks": tasks}


def _task(told: TaskReport, data: Path) -> dict[str, Any]:
  metrics = {}
  for name, estimate in told.summary.items():
    metrics[name] = {
      "value": _finite(estimate.value),
      "standard_error": _finite(estimate.error),
      "interval_95": told.intervals.get(name),
    }
  groups = {
    group: {name: _finite(estimate.value) for name, estimate in summary.items()}
    for group, summary in told.groups.items()
  }
  asked = json.dumps(told.asked).encode()
  return {
    "metrics": metrics,
    "groups": groups,
    "quoted_by": told.task.metric,
    "n": len(told.items),
    "n_cut": told.num_cut,
    "shots": max(len(item.shots) for item in told.items),
    "digest_of_prompts": hashlib.sha256(asked).hexdigest(),
    "sha256_of_data": rows.digest(data, told.task.file),
  }


def _finite(value: float) -> float | None:
  return value if math.isfinite(value) else None


def to_table(report: Report) -> str:
  """A line for each number; the one that a task is quoted by has a star."""
  head = (
    f"{'task':20} {'metric':24} {'value':>8} {'error':>7}  {'95 %':16} {'n':>6} {'shots':>5}"
  )
  lines = [head]
  for name, told in report.items():
    shots = max(len(item.shots) for item in told.items)
    for metric, (value, error) in told.summary.items():
      interval = told.intervals.get(metric)
      between = "" if interval is None else f"{interval[0]:.4f}-{interval[1]:.4f}"
      star = "*" if metric == told.task.metric else " "
      lines.append(
        f"{name:20} {metric + star:24} {value:8.4f} {error:7.4f}  {between:16} "
        f"{len(told.items):6d} {shots:5d}"
      )
    if told.num_cut:
      lines.append(f"{name:20} {told.num_cut} of {len(told.items)} items were cut: no room.")
  return "\n".join(lines)


def save(folder: Path, report: Report, results: dict[str, Any], memory: Memory) -> None:
  """Writes `results.json`, and `items.jsonl`: of each item requests, answers and scores.

  An item's `key` is that of the memory, which is closed.

  Raises:
    OSError: they cannot be written.
  """
  home = Folder(folder)
  with atomic.explaining(folder):
    home.make()
    with home.new_file(ITEMS) as path, path.open("w", encoding="utf-8") as file:
      for name, told in report.items():
        lines = zip(told.items, told.asked, told.answers, told.scores, strict=True)
        for item, asked, answers, score in lines:
          line = {
            "task": name,
            "key": memory.key(asked),
            "row": dict(item.row),
            "requests": asked,
            "answers": answers,
            "scores": score,
          }
          file.write(json.dumps(line, ensure_ascii=False) + "\n")
    home.write_json("results.json", results)
    memory.close()
