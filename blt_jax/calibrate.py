"""Finds the entropy threshold for a wanted mean patch size.

  python -m blt_jax.calibrate --run=runs/quickstart/entropy --target_bytes_per_patch=4.5

Writes it next to the entropy model, where training looks for it.
"""

import argparse
import dataclasses
from collections.abc import Sequence

import numpy as np
from absl import logging

from blt_jax import logs, patching, runs, tokenizer
from blt_jax.data import sources
from blt_jax.data.entropy import EntropyScorer

Scored = tuple[np.ndarray, np.ndarray]  # ids [n] of a document, entropies [n]


def main(argv: list[str] | None = None) -> None:
  """Scores a sample, prints the choice of thresholds, saves the one asked for."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--run", required=True, help="folder of the entropy model's run")
  parser.add_argument("--target_bytes_per_patch", type=float, default=4.5)
  parser.add_argument("--data", help="text to look at; by default what the model learned")
  parser.add_argument("--max_bytes", type=int, default=500_000, help="how much of it to score")
  parser.add_argument("--monotonic", action="store_true", help="threshold the entropy's rise")
  args = parser.parse_args(argv)
  logs.show_progress()
  data = runs.load_config(args.run).data
  documents = sources.read_documents(args.data or data.path, data.max_document_bytes)
  scorer = EntropyScorer(*runs.load_entropy_model(args.run))
  logging.info("Scoring %s bytes.", f"{min(sum(map(len, documents)), args.max_bytes):,}")
  scored = score_sample(scorer, documents, args.max_bytes)
  rule = patching.PatchingConfig(monotonic=args.monotonic)
  print(" target   threshold   mean  median  95 %  one-byte")
  longest = min(len(tokens) for tokens, _ in scored)
  for target in (t for t in (2.0, 3.0, 4.0, 4.5, 5.0, 6.0, 8.0) if t < longest):
    print(_row(target, *find_threshold(scored, target, rule)))
  threshold, lengths = find_threshold(scored, args.target_bytes_per_patch, rule)
  mean = float(lengths.mean())
  runs.save_threshold(args.run, threshold, rule.monotonic)
  logging.info("Threshold %.6f nats: %.3f bytes per patch.", threshold, mean)


def score_sample(
  scorer: EntropyScorer, documents: Sequence[bytes], max_bytes: int
) -> list[Scored]:
  """Scores documents in a random order until `max_bytes` are done."""
  scored, size = [], 0
  for index in np.random.default_rng(0).permutation(len(documents)):
    if size >= max_bytes:
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
  main()
