"""The report of a study, or of any runs: Markdown, CSV and pictures in a folder."""

import csv
import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from blt_jax.storage import atomic
from blt_jax.storage.folders import Folder
from blt_jax.studies import plots, sweep, tables
from blt_jax.studies.fits import Interval
from blt_jax.studies.records import Record, read
from blt_jax.studies.study import Study
from blt_jax.studies.sweep import Sweep, sweep_of
from blt_jax.studies.tables import Comparison

_HEAD = (
  "arm", "seeds", "bits per byte", "95 %", "minus reference", "95 % of the difference",
  "bytes per patch", "bytes seen", "training FLOPs", "paper", "real", "paper + entropy model",
  "real + entropy model",
)  # fmt: skip
_COLUMNS = "paper", "real", "whole_paper", "whole_real"


def write(
  folder: str,
  records: Sequence[Record],
  reference: str,
  sweeps: Mapping[str, Sweep] | None = None,
  notes: Sequence[str] = (),
) -> str:
  """Writes `report.md`, `runs.csv`, `comparison.csv` and the pictures.

  Args:
    folder: to write to; it is made.
    records: of all runs.
    reference: the arm that others are compared with.
    sweeps: arm -> learning rates that it tried.
    notes: what else the reader must know.

  Returns:
    The text of `report.md`.

  Raises:
    ValueError: there are no runs, or none of the reference.
    ImportError: matplotlib is missing.
  """
  if not any(record.arm == reference for record in records):
    arms = ", ".join(sorted({record.arm for record in records})) or "no arm"
    raise ValueError(
      f"No run of the reference {reference!r} is done; there are some of {arms}."
    )
  home = Folder(folder)
  home.make_writable()
  chosen = tables.best_of_each(records)
  rows = tables.compare(chosen, reference)
  pictures = plots.draw_all(folder, chosen, rows)
  text = "\n\n".join(
    [
      f"# Held-out bits per byte at equal training FLOPs, compared with {reference}",
      *_warnings(rows, reference, sweeps or {}, notes),
      *_comparisons(rows),
      *_fits(chosen, reference),
      *_gains(rows, reference),
      *_sweeps(sweeps or {}),
      *(f"![{name}]({name})" for name in pictures),
    ]
  )
  with atomic.writing(home.path_of("report.md")) as file:
    file.write(text + "\n")
  _write_csv(home.path_of("runs.csv"), [_run_fields(record) for record in records])
  _write_csv(home.path_of("comparison.csv"), [_row_fields(row) for row in rows])
  return text


def of_study(study: Study, reference: str) -> str:
  """Reports what is done of a study so far, into `report/` of its folder; see `write`."""
  done = study.done()
  arms = [arm for arm in study.plan.arms if not study.plan.arms[arm].rate_of]
  sweeps = {arm: sweep_of(study.plan, arm, done) for arm in arms}
  diverged = [run.name for run, score in done.items() if math.isinf(score)]
  wanted = sweep.foreseen(study.plan, list(study.plan.arms), done)
  missing = len(wanted) - len(done)
  notes = [f"{missing} of {len(wanted)} runs are still to come."] * (missing > 0)
  notes += [f"Training diverged in {', '.join(diverged)}."] * bool(diverged)
  records = study.records(done)
  if records and reference not in {record.arm for record in records}:
    notes.append(f"No run of {reference} is done: {records[0].arm} stands in for it.")
    reference = records[0].arm
  return write(study.home.path_of("report"), records, reference, sweeps, notes)


def of_runs(folder: str, groups: Sequence[str], reference: str | None = None) -> str:
  """Reports runs that were trained by themselves; see `write`.

  Args:
    folder: to write to.
    groups: of runs, "LABEL=FOLDER,FOLDER" or "FOLDER,FOLDER"; by default a run's label is
      the name of its folder.
    reference: a label; by default the first.
  """
  records = []
  for group in groups:
    label, equals, paths = group.rpartition("=")
    for path in paths.split(","):
      found = read(path, label if equals else "")
      # Those of about the same FLOPs stand together.
      records.append(dataclasses.replace(found, budget=float(f"{found.budget:.1e}")))
  return write(folder, records, reference or records[0].arm)


# --- Parts of the text


def _warnings(rows, reference, sweeps, notes) -> list[str]:
  found = list(notes)
  for arm, ratio in tables.unequal_costs(rows, reference).items():
    found.append(
      f"{arm} takes {ratio:.3f} times the FLOPs per byte of {reference}, more than "
      f"{tables.SAME_COST:.0%} from it: at equal training FLOPs it saw other amounts of text."
    )
  for arm, swept in sweeps.items():
    if swept.is_at_edge:
      found.append(
        f"The best learning rate of {arm}, {swept.best:g}, is at the edge of its sweep: a "
        "better one may lie beyond."
      )
  alone = {row.first.arm for row in rows if len(row.differences) == 1}
  if alone:
    found.append(
      f"Differences of one pair of seeds have no interval: {', '.join(sorted(alone))}."
    )
  return [f"**Note.** {text}" for text in found]


def _comparisons(rows: Sequence[Comparison]) -> list[str]:
  parts = []
  for budget in dict.fromkeys(row.budget for row in rows):
    own = [row for row in rows if row.budget == budget]
    lines = [_cells(row) for row in own]
    parts += [f"## {budget:.3g} training FLOPs", _table(_HEAD, lines)]
  parts.append(
    "The last four columns are MFLOPs of the forward pass per byte: by the paper's count and "
    "by real sizes, without and with the entropy model. Training takes three times as many. "
    "Intervals are Student's over seeds; differences are between runs of one seed, which "
    "share initialisation and order of the text."
  )
  return parts


def _cells(row: Comparison) -> list[str]:
  first, difference = row.first, row.difference
  seen = [r.curve[-1].bytes for r in row.records]
  flops = [r.training_flops for r in row.records]
  costs = [f"{getattr(first.cost, name) / 1e6:.4g}" for name in _COLUMNS]
  return [
    first.arm, str(len(row.records)), f"{row.bpb.value:.4f}", _ends(row.bpb),
    "" if difference is None else f"{difference.value:+.4f}",
    "" if difference is None else _ends(difference, "+"),
    f"{first.patch_size:.2f}", f"{sum(seen) / len(seen):.3g}",
    f"{sum(flops) / len(flops):.3g}", *costs,
  ]  # fmt: skip


def _ends(interval: Interval, sign: str = "") -> str:
  if math.isnan(interval.low):
    return "-"
  return f"{interval.low:{sign}.4f} to {interval.high:{sign}.4f}"


def _fits(records: Sequence[Record], reference: str) -> list[str]:
  lines = tables.fit_curves(records)
  if not lines:
    return []
  curves = [
    [arm, f"{10**line.height:.4f}", f"{10**line.center:.3g}", f"{line.slope:+.4f}"]
    for arm, line in lines.items()
  ]
  crossings = [
    [c.arm, f"{c.change:+.4f}", *_crossing_cells(c)]
    for c in tables.find_crossings(records, reference)
  ]
  return [
    "## Through budgets",
    "Bits per byte as a power of training FLOPs:",
    _table(("arm", "bits per byte", "at FLOPs", "exponent"), curves),
    f"Difference from {reference} as a line over the logarithm of training FLOPs, and where it "
    "crosses zero (95 % by Fieller's theorem; it needs three points):",
    _table(("arm", "change for ten times the FLOPs", "crossing", "95 %"), crossings),
  ]


def _crossing_cells(crossing: tables.Crossing) -> list[str]:
  if crossing.flops is None:
    return ["none near", "-"]
  value, low, high = crossing.flops
  place = f"{value:.3g}" + ("" if crossing.is_inside else " (beyond the budgets run)")
  if math.isnan(low):
    return [place, "-"]
  return [place, "undecided" if math.isinf(high) else f"{low:.3g} to {high:.3g}"]


def _gains(rows: Sequence[Comparison], reference: str) -> list[str]:
  gains = {(g.arm, g.budget): g for g in tables.find_gains(rows, reference)}
  if not gains:
    return []
  budgets = sorted({budget for _, budget in gains})
  lines = [
    [arm, *(_times(gains.get((arm, budget))) for budget in budgets)]
    for arm in sorted({arm for arm, _ in gains})
  ]
  return [
    f"How many times an arm's FLOPs {reference} needs for the same bits per byte, between the "
    "budgets that it was run at:",
    _table(("arm", *(f"{budget:.3g} FLOPs" for budget in budgets)), lines),
  ]


def _times(gain: tables.Gain | None) -> str:
  if gain is None:
    return ""
  if gain.low == 0:
    return f"< {gain.high:.3g}"
  return f"> {gain.low:.3g}" if math.isinf(gain.high) else f"{gain.low:.3g}"


def _sweeps(sweeps: Mapping[str, Sweep]) -> list[str]:
  if not sweeps:
    return []
  rates = sorted({rate for swept in sweeps.values() for rate in swept.scores})
  lines = []
  for arm, swept in sweeps.items():
    cells = [_score(swept, rate) for rate in rates]
    lines.append([arm, *cells, "" if swept.best is None else f"{swept.best:g}"])
  head = ("arm", *(f"{rate:g}" for rate in rates), "best")
  return ["## Learning rates", _table(head, lines)]


def _score(swept: Sweep, rate: float) -> str:
  score = swept.scores.get(rate, math.nan)
  if math.isnan(score):
    return ""
  shown = "diverged" if math.isinf(score) else f"{score:.4f}"
  return f"**{shown}**" if rate == swept.best else shown


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
  rule = ["---", *["---:"] * (len(head) - 1)]
  return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *lines))


# --- CSV


def _run_fields(record: Record) -> dict[str, Any]:
  return {
    "arm": record.arm,
    "budget": record.budget,
    "seed": record.seed,
    "learning_rate": record.rate,
    "bpb": record.bpb,
    "bytes_seen": record.curve[-1].bytes,
    "training_flops": record.training_flops,
    "patch_size": record.patch_size,
    **_cost_fields(record),
    "step_seconds": record.step_seconds,
    "folder": os.path.normpath(record.folder),
  }


def _row_fields(row: Comparison) -> dict[str, Any]:
  difference = row.difference or Interval(math.nan, math.nan, math.nan)
  return {
    "arm": row.first.arm,
    "budget": row.budget,
    "seeds": len(row.records),
    "bpb": row.bpb.value,
    "bpb_low": row.bpb.low,
    "bpb_high": row.bpb.high,
    "difference": difference.value,
    "difference_low": difference.low,
    "difference_high": difference.high,
    **_cost_fields(row.first),
  }


def _cost_fields(record: Record) -> dict[str, float]:
  return {f"{name}_flops_per_byte": getattr(record.cost, name) for name in _COLUMNS}


def _write_csv(path: str, lines: Sequence[Mapping[str, Any]]) -> None:
  with atomic.writing(path) as file:
    writer = csv.DictWriter(file, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    for line in lines:
      missing = {k for k, v in line.items() if isinstance(v, float) and math.isnan(v)}
      writer.writerow({k: "" if k in missing else v for k, v in line.items()})
