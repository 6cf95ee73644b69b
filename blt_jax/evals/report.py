"""What the suite found, as a table and as files."""

import contextlib
import hashlib
import importlib.metadata
import json
import math
import platform
import types
from collections.abc import Mapping
from typing import Any

from blt_jax.evals import rows, samples
from blt_jax.evals.memory import ITEMS, Memory
from blt_jax.evals.patches import PatchUse
from blt_jax.evals.statistics import Estimate
from blt_jax.evals.suite import Report, TaskReport
from blt_jax.storage import atomic
from blt_jax.storage.folders import Folder
from blt_jax.storage.paths import Path

_PACKAGES = ("blt_jax", "jax", "flax", "numpy", "sacrebleu")
_HEAD = (
  f"{'task':24} {'metric':36} {'value':>8} {'error':>7}  {'95 %':16} {'n':>6} {'shots':>5}"
)


def to_results(
  report: Report,
  data: Path,
  about: dict[str, Any],
  patches: Mapping[str, PatchUse] = types.MappingProxyType({}),
) -> dict[str, Any]:
  """All numbers as JSON holds them.

  Args:
    report: of the suite.
    data: the folder that the rows came from.
    about: what else to say: the run, its step, the threshold, the seed.
    patches: task -> how its texts were patched.
  """
  tasks = {name: _task(told, data, patches.get(name)) for name, told in report.items()}
  return {**about, "versions": versions(), "tasks": tasks}


def versions() -> dict[str, str]:
  """Those of packages that are installed."""
  found = {"python": platform.python_version()}
  for name in _PACKAGES:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[name] = importlib.metadata.version(name)
  return found


def _task(told: TaskReport, data: Path, patches: PatchUse | None) -> dict[str, Any]:
  metrics = {}
  for name, estimate in told.summary.items():
    metrics[name] = {
      "value": finite(estimate.value),
      "standard_error": finite(estimate.error),
      "interval_95": [finite(end) for end in told.intervals[name]],
    }
  groups = {
    field: {value: _values(summary) for value, summary in by_value.items()}
    for field, by_value in told.groups.items()
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
    "sha256_of_data": rows.digest(samples.locate(str(data)), told.task.file),
    "signatures": told.task.signatures(told.items),
    "bytes_per_patch": patches and patches.bytes_per_patch,
    "patches_per_item": patches and patches.patches_per_item,
  }


def _values(summary: Mapping[str, Estimate]) -> dict[str, dict[str, float | None]]:
  return {
    name: {"value": finite(estimate.value), "standard_error": finite(estimate.error)}
    for name, estimate in summary.items()
  }


def finite(value: float) -> float | None:
  """The number as JSON can hold it: None for NaN and infinity."""
  return value if math.isfinite(value) else None


def to_table(report: Report) -> str:
  """A line for each number; the one that a task is quoted by has a star."""
  lines = [_HEAD]
  for name, told in report.items():
    shots = max(len(item.shots) for item in told.items)
    for metric, estimate in told.summary.items():
      numbers = _numbers(estimate, told.intervals[metric])
      star = "*" if metric == told.task.metric else " "
      lines.append(f"{name:24} {metric + star:36} {numbers} {len(told.items):6d} {shots:5d}")
    if told.num_cut:
      lines.append(f"{name:24} {told.num_cut} of {len(told.items)} items were cut: no room.")
  return "\n".join(lines)


def _numbers(estimate: Estimate, interval: tuple[float, float]) -> str:
  value, error, low, high = map(_short, (estimate.value, estimate.error, *interval))
  return f"{value:>8} {error:>7}  {f'{low} {high}':16}"


def _short(number: float) -> str:
  return f"{number:.4f}" if abs(number) < 1000 else f"{number:.3g}"


def save(folder: Path, report: Report, results: dict[str, Any], memory: Memory) -> None:
  """Writes `results.json`, and `items.jsonl`: of each item requests, answers and scores.

  An item's `key` is that of the memory, which is closed and keeps what else it knows.

  Raises:
    OSError: they cannot be written.
  """
  home = Folder(folder)
  with atomic.explaining(folder):
    home.make()
    memory.keep_others(memory.key(asked) for told in report.values() for asked in told.asked)
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
