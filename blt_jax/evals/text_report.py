"""Bits per byte of text, as a table, as files and as a picture."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from blt_jax.cli import plots
from blt_jax.evals import report, text_scores
from blt_jax.evals.text_scores import Scores
from blt_jax.evals.text_sources import Source
from blt_jax.runs import metrics
from blt_jax.storage import atomic
from blt_jax.storage.folders import Folder
from blt_jax.storage.paths import Path

ALL = "all"  # sources together
_MOST_SHOWN = 40  # values of a field, in a table or a picture
_WIDEST = 40  # characters of a name in the table

Found = Mapping[str, Scores]  # name of a source -> what was found


def to_results(found: Found, sources: list[Source], about: Mapping[str, Any]) -> dict[str, Any]:
  """All numbers as JSON holds them: those of all text, of each source and each value.

  Args:
    found: of each source.
    sources: the same sources.
    about: what else to say: the run, its step, how it patches.
  """
  whole = text_scores.join(list(found.values()))
  each = {
    source.name: {
      "path": source.path,
      "files": len(source.files),
      "fingerprint": source.fingerprint,
      **_numbers(found[source.name], source.options.pictures is not None),
    }
    for source in sources
  }
  by = {
    field: {value: _few_numbers(some) for value, some in whole.by(field).items()}
    for field in whole.values
  }
  files = {name for source in sources for name in source.files}
  return {
    **about,
    **_numbers(whole, any(source.options.pictures is not None for source in sources)),
    "files": len(files),
    "sources": each,
    "by": by,
    "versions": report.versions(),
  }


def _numbers(scores: Scores, of_pictures: bool) -> dict[str, Any]:
  """Those of `metrics.summarise`, and of documents; of pictures also bits per dimension."""
  sums = dict(scores.sums) | {"nats": float(scores.nats.sum())}
  found = metrics.summarise(sums) | _few_numbers(scores)
  return found | ({"bits_per_dimension": scores.bits_per_dimension} if of_pictures else {})


def _few_numbers(scores: Scores) -> dict[str, Any]:
  return {
    "bpb": scores.bits_per_byte,
    "interval_95": scores.interval(),
    "bytes": int(scores.bytes.sum()),
    "documents": len(scores.nats),
  }


def to_table(results: Mapping[str, Any]) -> str:
  """A line for all text, for each source, and for each value of a field.

  Args:
    results: of `to_results`.
  """
  context = results["context"]
  seen = "the run's rows" if context is None else f"{context} bytes before each prediction"
  lines = [
    f"{results['run']}, step {results['step']}, {seen}, "
    f"{results['patch_size']:.2f} bytes per patch",
    f"{'text':{_WIDEST}} {'bits/byte':>9}  {'95 %':16} {'documents':>9} {'bytes':>14}",
  ]
  if len(results["sources"]) > 1:
    lines += [_line(name, numbers) for name, numbers in results["sources"].items()]
  lines.append(_line(ALL, results))
  if "bits_per_dimension" in results:
    lines.append(f"{results['bits_per_dimension']:.4f} bits per dimension, ends left out")
  if "dropped_targets" in results:
    lines.append(f"{results['dropped_targets']:.2%} of all targets were left out: no slots.")
  for field, values in results["by"].items():
    shown = _largest(values)
    lines += ["", f"by {field}", *(_line(value, values[value]) for value in shown)]
    if len(shown) < len(values):
      lines.append(f"and {len(values) - len(shown):,} other values, of fewer bytes")
  return "\n".join(lines)


def _largest(values: Mapping[str, Any]) -> list[str]:
  """The values of the most bytes, in alphabetical order."""
  return sorted(sorted(values, key=lambda value: -values[value]["bytes"])[:_MOST_SHOWN])


def _line(name: str, numbers: Mapping[str, Any]) -> str:
  low, high = numbers["interval_95"] or (None, None)
  interval = "" if low is None else f"{low:.4f} {high:.4f}"
  shown = name if len(name) <= _WIDEST else f"{name[: _WIDEST - 3]}..."
  start = f"{shown!r}"[1:-1] if not shown.isprintable() else shown
  return (
    f"{start:{_WIDEST}} {numbers['bpb']:9.4f}  {interval:16} {numbers['documents']:9,d} "
    f"{numbers['bytes']:14,d}"
  )


def save(folder: Path, results: Mapping[str, Any]) -> None:
  """Writes `results.json` and `table.txt`.

  Raises:
    OSError: they cannot be written.
  """
  home = Folder(folder)
  with atomic.explaining(folder):
    home.make()
    home.write_json("results.json", results)
    with atomic.writing(home.path_of("table.txt")) as file:
      file.write(to_table(results) + "\n")


def draw(results: Mapping[str, Any], path: str) -> None:
  """Draws bits per byte of sources and of values of fields; lines are intervals of 95 %.

  Args:
    results: of `to_results`.
    path: of the picture.

  Raises:
    ImportError: matplotlib is missing.
  """
  pyplot = plots.import_pyplot()
  groups = {"source": results["sources"], **results["by"]}
  shown = {title: {n: values[n] for n in _largest(values)} for title, values in groups.items()}
  heights = [1.2 + 0.3 * len(values) for values in shown.values()]
  figure, axes = pyplot.subplots(
    len(shown), 1, squeeze=False, layout="constrained", height_ratios=heights,
    figsize=(7, sum(heights)),
  )  # fmt: skip
  for one, (title, values) in zip(axes.flat, shown.items(), strict=True):
    _draw_bars(one, title, values)
  with atomic.new_file(path) as file:
    figure.savefig(file, dpi=150)
  pyplot.close(figure)


def _draw_bars(axes: Any, title: str, values: Mapping[str, Any]) -> None:
  bits = np.array([numbers["bpb"] for numbers in values.values()])
  ends = [n["interval_95"] or (n["bpb"], n["bpb"]) for n in values.values()]
  lengths = np.maximum(0, [bits - np.array(ends)[:, 0], np.array(ends)[:, 1] - bits])
  characters = sorted(set("".join(values)))
  drawn, families = plots.with_fonts(characters)
  table = str.maketrans(dict(zip(characters, drawn, strict=True)))
  names = [name.translate(table) for name in values]
  axes.barh(np.arange(len(bits)), bits, xerr=lengths, capsize=2)
  axes.set_yticks(np.arange(len(bits)), names, family=families, parse_math=False)
  axes.invert_yaxis()
  axes.set_xlabel("bits per byte")
  axes.set_title(title)
