"""Finds the entropy threshold for a wanted mean patch size.

  python -m blt_jax.calibrate --run=runs/quickstart/entropy --target_bytes_per_patch=4.5

Writes it next to the entropy model, where training looks for it.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from absl import app, flags, logging

from blt_jax import logs, patching, runs, tokenizer
from blt_jax.data import sources
from blt_jax.data.entropy import EntropyScorer

_RUN = flags.DEFINE_string("run", None, "Folder of the entropy model's run.", required=True)
_TARGET = flags.DEFINE_float("target_bytes_per_patch", 4.5, "Wanted mean patch size, bytes.")
_DATA = flags.DEFINE_string(
  "data", None, "Text to look at; by default what the entropy model was trained on."
)
_MAX_BYTES = flags.DEFINE_integer("max_bytes", 500_000, "How much of it to score.")
_MONOTONIC = flags.DEFINE_bool("monotonic", False, "Threshold the rise of the entropy.")

Scored = tuple[np.ndarray, np.ndarray]  # ids [n] of a document, entropies [n]


def main(argv: list[str]) -> None:
  """Scores a sample, prints the choice of thresholds, saves the one asked for."""
  del argv
  logs.show_progress()
  data = runs.load_config(_RUN.value).data
  documents = sources.read_documents(_DATA.value or data.path, data.max_document_bytes)
  scored = score_sample(EntropyScorer(*runs.load_entropy_model(_RUN.value)), documents)
  rule = patching.PatchingConfig(monotonic=_MONOTONIC.value)
  print(" target   threshold   mean  median  95 %  one-byte")
  for target in (2.0, 3.0, 4.0, 4.5, 5.0, 6.0, 8.0):
    print(_row(target, *find_threshold(scored, target, rule)))
  threshold, lengths = find_threshold(scored, _TARGET.value, rule)
  mean = float(lengths.mean())
  runs.save_threshold(_RUN.value, {"threshold": threshold, "bytes_per_patch": mean})
  logging.info("Threshold %.6f nats: %.3f bytes per patch.", threshold, mean)


def score_sample(scorer: EntropyScorer, documents: Sequence[bytes]) -> list[Scored]:
  """Scores documents in a random order until `--max_bytes` are done."""
  scored, size = [], 0
  for index in np.random.default_rng(0).permutation(len(documents)):
    if size >= _MAX_BYTES.value:
      break
    tokens = tokenizer.encode(documents[index])
    scored.append((tokens, scorer(tokens)))
    size += len(tokens)
  return scored


def find_threshold(
  scored: Sequence[Scored], target: float, rule: patching.PatchingConfig
) -> tuple[float, np.ndarray]:
  """Bisects for a threshold.

  Args:
    scored: documents with their entropies.
    target: wanted mean patch size in bytes.
    rule: the entropy rule; its threshold is replaced.

  Returns:
    The threshold in nats, and the lengths of all patches under it.

  Raises:
    ValueError: no threshold gives such patches.
  """
  low, high = -10.0, 10.0  # entropies of 260 ids are below 5.6 nats, so is their rise
  largest = np.mean([len(t) for t, _ in scored])
  if not 1 <= target <= largest:
    raise ValueError(f"The mean patch size must be between 1 and {largest:.0f}, got {target}.")
  for _ in range(40):
    middle = (low + high) / 2
    if _lengths(scored, middle, rule).mean() < target:
      low = middle
    else:
      high = middle
  return high, _lengths(scored, high, rule)


def _lengths(scored, threshold, rule):
  config = dataclasses.replace(rule, threshold=threshold)
  return np.concatenate(
    [
      patching.patch_lengths(t[None], config, entropies=h[None], include_next=False)[0]
      for t, h in scored
    ]
  )


def _row(target, threshold, lengths):
  middle, high = np.percentile(lengths, (50, 95))
  return (
    f"{target:7.1f}  {threshold:10.6f}  {lengths.mean():5.2f}  {middle:6.0f}  {high:4.0f}"
    f"  {np.mean(lengths == 1):7.1%}"
  )


if __name__ == "__main__":
  app.run(main)
