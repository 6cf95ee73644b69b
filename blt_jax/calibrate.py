"""Finds the entropy threshold for a wanted mean patch size.

  python -m blt_jax.calibrate --run=runs/quickstart/entropy --target_bytes_per_patch=4.5
  python -m blt_jax.calibrate --run=runs/table --threshold_add=0.3 --png=thresholds.png

Prints how long patches are under other thresholds too. Writes the threshold next to the
model, where training finds it if config.patching asks for the same rule.
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
from absl import logging

from blt_jax import logs, runs, thresholds, tokenizer
from blt_jax.data import sources
from blt_jax.data.entropy import EntropyScorer
from blt_jax.data.table import INFO, TableModel
from blt_jax.data.transforms import Scorer
from blt_jax.patching import PatchingConfig
from blt_jax.progress import Progress
from blt_jax.thresholds import PatchSizes, Scored

_TARGETS = (2.0, 3.0, 4.0, 4.5, 5.0, 6.0, 8.0)


def main(argv: list[str] | None = None) -> None:
  """Scores a sample, prints the choice of thresholds, saves the one asked for."""
  args = _parse(argv)
  logs.show_progress()
  rule = PatchingConfig(
    monotonic=args.monotonic,
    threshold_add=args.threshold_add,
    reset_at_newline=args.reset_at_newline,
  )
  scored = read_scored(args.run, rule.reset_at_newline, args.data, args.max_bytes)
  sizes = measure(scored, rule, args.target_bytes_per_patch)
  print(" target   threshold   mean  median  95 %  one-byte")
  for target, row in sorted(sizes.items()):
    print(
      f"{target:7.2f}  {row.threshold:10.6f}  {row.mean:5.2f}  {row.median:6.0f}"
      f"  {row.high:4.0f}  {row.one_byte:7.1%}"
    )
  chosen = sizes[args.target_bytes_per_patch]
  runs.save_threshold(args.run, dataclasses.replace(rule, threshold=chosen.threshold))
  logging.info("Threshold %.6f nats: %.3f bytes per patch.", chosen.threshold, chosen.mean)
  if args.png:
    found = [row.threshold for row in sizes.values()]
    grid = np.linspace(min(found), max(found), 40).tolist()
    draw([thresholds.patch_sizes(scored, rule, t) for t in grid], chosen, args.png)


def _parse(argv: list[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "--run", required=True, help="folder of an entropy model's run, or of a table model"
  )
  parser.add_argument(
    "--target_bytes_per_patch", type=float, default=4.5, help="mean patch size wanted (4.5)"
  )
  parser.add_argument("--data", help="text to look at; by default what the model learned")
  parser.add_argument(
    "--max_bytes", type=int, default=500_000, help="how much of it to score (500,000)"
  )
  rules = parser.add_mutually_exclusive_group()
  rules.add_argument(
    "--monotonic", action="store_true",
    help="threshold the rise of the entropy, not the entropy",
  )  # fmt: skip
  rules.add_argument(
    "--threshold_add", type=float, metavar="NATS",
    help="the entropy must also rise by more than this",
  )  # fmt: skip
  parser.add_argument(
    "--reset_at_newline", action="store_true",
    help="with entropies whose context begins anew after each newline",
  )  # fmt: skip
  parser.add_argument("--png", metavar="FILE", help="draw patch sizes over thresholds")
  return parser.parse_args(argv)


# --- Where entropies come from


def read_scored(
  folder: str, reset_at_newline: bool, data: str | None, max_bytes: int
) -> list[Scored]:
  """Documents with entropies, as training would see them.

  Args:
    folder: of a table model or of an entropy model's run.
    reset_at_newline: what the entropies must be.
    data: text to score; None for what the model learned.
    max_bytes: how much of it.

  Raises:
    FileNotFoundError: the folder holds no model, or there is no text.
    ValueError: the entropies are of another kind.
  """
  read = _score_by_table if (pathlib.Path(folder) / INFO).exists() else _score_by_run
  return read(folder, reset_at_newline, data, max_bytes)


def _score_by_run(folder, reset_at_newline, data, max_bytes) -> list[Scored]:
  settings = runs.load_config(folder).data
  scorer = EntropyScorer(*runs.load_entropy_model(folder))
  _check_reset(folder, reset_at_newline, False)
  documents = sources.read_documents(data or settings.path, settings.max_document_bytes)
  return score_sample(scorer, documents, max_bytes)


def _score_by_table(folder, reset_at_newline, data, max_bytes) -> list[Scored]:
  model = TableModel(folder)
  _check_reset(folder, reset_at_newline, model.info["reset_at_newline"])
  return score_sample(model, sources.read_documents(data or model.info["input"]), max_bytes)


def _check_reset(folder: str, wanted: bool, given: bool) -> None:
  if wanted != given:
    raise ValueError(
      f"--reset_at_newline is {wanted}, but the entropies of {folder} are made with "
      f"{given}; change the flag, or choose another --run."
    )


def score_sample(scorer: Scorer, documents: Sequence[bytes], max_bytes: int) -> list[Scored]:
  """Scores documents in a random order until `max_bytes` are done."""
  progress = Progress("Scored", min(sum(map(len, documents)), max_bytes))
  scored, size = [], 0
  for index in np.random.default_rng(0).permutation(len(documents)):
    if size >= max_bytes:
      break
    tokens = tokenizer.encode(documents[index])
    scored.append((tokens, scorer(tokens)))
    size += len(documents[index])
    progress.add(len(documents[index]))
  return scored


# --- Output


def measure(
  scored: Sequence[Scored], rule: PatchingConfig, target: float
) -> dict[float, PatchSizes]:
  """Patch sizes by wanted mean: the target's, and others to compare.

  Raises:
    ValueError: no threshold gives the target.
  """
  smallest, largest = thresholds.possible_means(scored, rule)
  targets = {target} | {t for t in _TARGETS if smallest <= t <= largest}
  found = {t: thresholds.find_threshold(scored, rule, t) for t in targets}
  return {t: thresholds.patch_sizes(scored, rule, found[t]) for t in targets}


def draw(curve: Sequence[PatchSizes], chosen: PatchSizes, path: str) -> None:
  """Draws patch sizes, and the share of one-byte patches, over the threshold.

  Raises:
    ImportError: matplotlib is missing.
  """
  try:
    import matplotlib
  except ImportError as error:
    raise ImportError("--png needs matplotlib: pip install 'blt_jax[plot]'.") from error
  matplotlib.use("Agg")
  from matplotlib import pyplot

  figure, (lengths, share) = pyplot.subplots(2, sharex=True, layout="constrained")
  columns = PatchSizes(*np.transpose(curve))
  lengths.plot(columns.threshold, columns.mean, label="mean")
  lengths.plot(columns.threshold, columns.median, label="median")
  lengths.plot(columns.threshold, columns.high, label="95 %")
  lengths.plot(chosen.threshold, chosen.mean, "o", color="tab:red", label="chosen")
  lengths.set_ylabel("Bytes per patch")
  lengths.legend()
  share.plot(columns.threshold, columns.one_byte)
  share.plot(chosen.threshold, chosen.one_byte, "o", color="tab:red")
  share.set_ylabel("Share of one-byte patches")
  share.set_xlabel("Threshold (nats)")
  figure.savefig(path, dpi=150)
  pyplot.close(figure)


if __name__ == "__main__":
  main()
