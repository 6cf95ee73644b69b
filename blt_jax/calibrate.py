"""Finds the entropy threshold for a wanted mean patch size.

  python -m blt_jax.calibrate --run=runs/quickstart/entropy --target_bytes_per_patch=4.5
  python -m blt_jax.calibrate --run=runs/table --threshold_add=0.3 --png=thresholds.png
  python -m blt_jax.calibrate --run=runs/quickstart/entropy --target_bytes_per_patch=4.5,9

Prints how long patches are under other thresholds too. Writes the threshold next to the
model, where training finds it if config.patching asks for the same rule. Of several sizes the
first one is that of a BLT, and all of them those of a mixture (docs/models.md).
"""

import argparse
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from absl import logging
from tqdm import tqdm

from blt_jax import tokenizer
from blt_jax.cli import logs, plots, run_flags, source_flags
from blt_jax.cli.parsing import Parser
from blt_jax.data import mixture
from blt_jax.data.reading import scored, sources
from blt_jax.data.reading.documents import Dataset, SourceOptions
from blt_jax.data.template import Template, parse
from blt_jax.data.transforms import Scorer
from blt_jax.entropy.neural import EntropyScorer
from blt_jax.entropy.table import TableModel, is_table
from blt_jax.patching import PatchingConfig, thresholds
from blt_jax.patching.thresholds import PatchSizes, Scored
from blt_jax.runs import checkpoint, corpus, patcher
from blt_jax.runs import folder as runs
from blt_jax.runs.warning_signs import WarningSigns
from blt_jax.storage import atomic

_TARGETS = (2.0, 3.0, 4.0, 4.5, 5.0, 6.0, 8.0)


def main(argv: list[str] | None = None) -> None:
  """Scores a sample, prints the choice of thresholds, saves the one asked for."""
  args = _parse(argv)
  logs.show_progress()
  rule = PatchingConfig(
    monotonic=args.monotonic,
    cumulative=args.cumulative,
    threshold_add=args.threshold_add,
    reset_at_newline=args.reset_at_newline,
  )
  if args.max_bytes < 1:
    raise ValueError(f"--max_bytes must be 1 or more, got {args.max_bytes}.")
  targets = args.target_bytes_per_patch
  if targets != sorted(set(targets)) or (args.cumulative and len(targets) > 1):
    raise ValueError(
      f"--target_bytes_per_patch is {targets}; several sizes must rise, from fine to coarse, "
      "and go with no --cumulative, whose patches do not nest."
    )
  if source_flags.parse(args) != SourceOptions() and args.data is None:
    raise ValueError(
      "--text_field, --on_error, --invalid_utf8 and --format say how to read --data."
    )
  reread = functools.partial(source_flags.parse, args)
  documents = read_scored(
    args.run, rule.reset_at_newline, args.data, args.max_bytes, reread, args.step
  )
  sizes = measure(documents, rule, targets)
  print(" target   threshold   mean  median  95 %  one-byte")
  for target, row in sorted(sizes.items()):
    print(
      f"{target:7.2f}  {row.threshold:10.6f}  {row.mean:5.2f}  {row.median:6.0f}"
      f"  {row.high:4.0f}  {row.one_byte:7.1%}"
    )
  chosen = [sizes[target] for target in targets]
  largest = thresholds.largest_entropy(documents, rule)
  for target, row in zip(targets, chosen, strict=True):
    logging.info("Threshold %.6f nats: %.3f bytes per patch.", row.threshold, row.mean)
    warn(row, {"target_bytes_per_patch": target, "largest_entropy": largest})
  measured = {"target_bytes_per_patch": targets[0], "largest_entropy": largest}
  finest, *coarser = (row.threshold for row in chosen)
  rule = dataclasses.replace(rule, threshold=finest, coarser=tuple(coarser))
  patcher.save_threshold(args.run, rule, **measured)
  if args.step is not None:
    checkpoint.warn_if_old(args.run, checkpoint.find_step(args.run, args.step))
  if args.png:
    found = [row.threshold for row in sizes.values()]
    grid = np.linspace(min(found), max(found), 40).tolist()
    rule = dataclasses.replace(rule, coarser=())
    draw([thresholds.patch_sizes(documents, rule, t) for t in grid], chosen, args.png)


def _parse(argv: list[str] | None) -> argparse.Namespace:
  parser = Parser("calibrate", __doc__)
  run_flags.add(
    parser, "folder of an entropy model's run, of a table model, or of stored entropies"
  )
  parser.add_argument(
    "--target_bytes_per_patch", type=run_flags.numbers, default=[4.5], metavar="BYTES",
    help="mean patch size wanted; or several for a mixture, from fine to coarse",
  )  # fmt: skip
  parser.add_argument(
    "--data",
    metavar="PATH",
    help="text to look at; by default what the model learned, which surprises it less than "
    "new text, so that new text falls into shorter patches",
  )
  parser.add_argument(
    "--max_bytes", type=int, default=500_000, metavar="N", help="how much of it to score"
  )
  source_flags.add(parser, default="for --data; by default as for the model's text")
  rules = parser.add_mutually_exclusive_group()
  rules.add_argument(
    "--monotonic", action="store_true",
    help="threshold the rise of the entropy, not the entropy",
  )  # fmt: skip
  rules.add_argument(
    "--threshold_add", type=float, metavar="NATS",
    help="the entropy must also rise by more than this",
  )  # fmt: skip
  rules.add_argument(
    "--cumulative", action="store_true",
    help="threshold the sum of the entropies since the last patch began",
  )  # fmt: skip
  parser.add_argument(
    "--reset_at_newline", action="store_true",
    help="with entropies whose context begins anew after each newline",
  )  # fmt: skip
  plots.add_flag(parser, "draw patch sizes over thresholds")
  return parser.parse_args(argv)


# --- Where entropies come from


def read_scored(
  folder: str,
  reset_at_newline: bool,
  data: str | None,
  max_bytes: int,
  reread: Callable[[SourceOptions], SourceOptions] = lambda options: options,
  step: checkpoint.Step = None,
) -> list[Scored]:
  """Documents with entropies, as training would see them.

  Args:
    folder: of a table model, of an entropy model's run, or of stored entropies.
    reset_at_newline: what the entropies must be.
    data: text to score; None for what the model learned, or what is stored.
    max_bytes: how much of it.
    reread: how `data` is read, from how the model's text was.
    step: of the run's checkpoint, as for `checkpoint.find_step`.

  Raises:
    FileNotFoundError: the folder holds no model, or there is no text.
    ValueError: the entropies are of another kind, or there are no steps to choose from.
  """
  scorer: Scorer | None
  if step is not None and (scored.is_scored(folder) or is_table(folder)):
    raise ValueError(f"--step goes with the run of an entropy model; {folder} is none.")
  if scored.is_scored(folder):
    parts, scorer = _stored(folder, reset_at_newline, data), None
  elif is_table(folder):
    table = TableModel(folder)
    _check_reset(folder, reset_at_newline, table.reset_at_newline)
    learned, options = _text_of(table, folder)
    source = sources.open_source(learned if data is None else data, reread(options))
    parts, scorer = _text(source), table
  else:
    settings = runs.load_config(folder).data
    scorer = EntropyScorer(*runs.load_entropy_model(folder, step), reset_at_newline)
    options = reread(corpus.source_options(settings))
    if data is None:
      parts = corpus.open_parts(settings)[0]
    else:
      parts = _text(sources.open_source(data, options))
  return sample(parts, scorer, max_bytes)


def _text_of(table: TableModel, folder: str) -> tuple[str, SourceOptions]:
  """The text that a table learned, and how it was read."""
  try:
    options = dict(table.info.get("options", {}))
    if (given := options.pop("template", None)) is not None:
      options["template"] = Template(**{role: tuple(parts) for role, parts in given.items()})
    return table.info["input"], SourceOptions(**options)
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(
      f"{folder}/table.json does not say what text it learned ({error}); train it anew."
    ) from None


def _text(documents: Dataset) -> corpus.Parts:
  return {"text": (documents, 1.0)}


def _stored(folder: str, reset_at_newline: bool, data: str | None) -> corpus.Parts:
  if data is not None:
    raise ValueError(f"--data goes with a model; {folder} holds text of its own.")
  manifest = scored.load_manifest(folder)
  _check_reset(folder, reset_at_newline, manifest.reset_at_newline)
  template = parse(manifest.template) if manifest.template else None
  return _text(sources.open_source(folder, SourceOptions(template=template)))


def _check_reset(folder: str, wanted: bool, given: bool) -> None:
  if wanted != given:
    raise ValueError(
      f"--reset_at_newline is {wanted}, but the entropies of {folder} are made with "
      f"{given}; change the flag, or choose another --run."
    )


def sample(parts: corpus.Parts, scorer: Scorer | None, max_bytes: int) -> list[Scored]:
  """Reads documents in a random order until `max_bytes` are done.

  Args:
    parts: where to read, as for `mixture.mix`; a single source is read once at most.
    scorer: gives their entropies; None where they bring them.
    max_bytes: how much to take.
  """
  chosen = mixture.mix(parts, seed=0, num_epochs=1 if len(parts) == 1 else None)
  scored_documents, size = [], 0
  with tqdm(desc="Scoring", total=max_bytes, unit="B", unit_scale=True) as bar:
    for document in chosen:
      tokens = tokenizer.encode(document.text)
      entropies = document.entropies if scorer is None else scorer(tokens)
      scored_documents.append((tokens, np.asarray(entropies, np.float32)))
      size += len(document.text)
      bar.update(len(document.text))
      if size >= max_bytes:
        break
  return scored_documents


# --- Output


def measure(
  documents: Sequence[Scored], rule: PatchingConfig, wanted: Sequence[float]
) -> dict[float, PatchSizes]:
  """Patch sizes by wanted mean: those of the targets, and others to compare.

  Raises:
    ValueError: no threshold gives a target.
  """
  smallest, largest = thresholds.possible_means(documents, rule)
  targets = {*wanted} | {t for t in _TARGETS if smallest <= t <= largest}
  found = {t: thresholds.find_threshold(documents, rule, t) for t in targets}
  return {t: thresholds.patch_sizes(documents, rule, found[t]) for t in targets}


def warn(chosen: PatchSizes, measured: Mapping[str, float | None]) -> None:
  """Warns of patches that no model will learn from.

  Args:
    chosen: the patches.
    measured: what `patcher.save_threshold` takes.
  """
  WarningSigns(scheme="entropy", **measured).look(
    threshold=chosen.threshold, patch_size=chosen.mean, one_byte_patches=chosen.one_byte
  )


def draw(curve: Sequence[PatchSizes], chosen: Sequence[PatchSizes], path: str) -> None:
  """Draws patch sizes, and the share of one-byte patches, over the threshold.

  Raises:
    ImportError: matplotlib is missing.
  """
  pyplot = plots.import_pyplot()
  figure, (lengths, share) = pyplot.subplots(2, sharex=True, layout="constrained")
  columns, points = PatchSizes(*np.transpose(curve)), PatchSizes(*np.transpose(chosen))
  lengths.plot(columns.threshold, columns.mean, label="mean")
  lengths.plot(columns.threshold, columns.median, label="median")
  lengths.plot(columns.threshold, columns.high, label="95 %")
  lengths.plot(points.threshold, points.mean, "o", color="tab:red", label="chosen")
  lengths.set_ylabel("Bytes per patch")
  lengths.legend()
  share.plot(columns.threshold, columns.one_byte)
  share.plot(points.threshold, points.one_byte, "o", color="tab:red")
  share.set_ylabel("Share of one-byte patches")
  share.set_xlabel("Threshold (nats)")
  with atomic.new_file(path) as file:
    figure.savefig(file, dpi=150)
  pyplot.close(figure)


if __name__ == "__main__":
  logs.run(main)
