"""Entropy thresholds and the patch sizes that they give."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from blt_jax import patching
from blt_jax.patching import PatchingConfig

Scored = tuple[np.ndarray, np.ndarray]  # ids [n] of a document, entropies [n]

# Entropies of 260 ids are below 5.6 nats, so is their rise; sums of them have no bound.
_LOWEST, _HIGHEST, _HIGHEST_SUM = -10.0, 10.0, 10_000.0
_PRECISION = 1e-6  # nats


class PatchSizes(NamedTuple):
  """How long the patches under a threshold are: bytes, and a share of all patches."""

  threshold: float
  mean: float
  median: float
  high: float  # 95 % of the patches are no longer
  one_byte: float


def patch_sizes(scored: Sequence[Scored], rule: PatchingConfig, threshold: float) -> PatchSizes:
  """Measures the patches that training would see under one threshold, not the rule's."""
  rule = dataclasses.replace(rule, threshold=threshold, coarser=())
  lengths = np.concatenate(
    [
      patching.patch_lengths(t[None], rule, entropies=h[None], include_next=False)[0]
      for t, h in scored
    ]
  )
  median, high = np.percentile(lengths, (50, 95))
  one_byte = np.mean(lengths == 1)
  return PatchSizes(threshold, *map(float, (lengths.mean(), median, high, one_byte)))


def largest_entropy(scored: Sequence[Scored], rule: PatchingConfig) -> float | None:
  """The largest value that the rule compares with its threshold, nats: entropy or its rise.

  None for sums of entropies, which have no largest.
  """
  if rule.cumulative:
    return None
  compared = [np.diff(h) if rule.monotonic else h[1:] for _, h in scored]  # byte 0: never
  return float(np.concatenate(compared).max(initial=0.0))


def possible_means(scored: Sequence[Scored], rule: PatchingConfig) -> tuple[float, float]:
  """The smallest and the largest mean patch size that any threshold gives."""
  return _mean(scored, rule, _LOWEST), _mean(scored, rule, _highest(rule))


def find_threshold(scored: Sequence[Scored], rule: PatchingConfig, target: float) -> float:
  """Bisects for the threshold whose mean patch size is nearest to the wanted one.

  Args:
    scored: documents with their entropies.
    rule: the entropy rule; its threshold is replaced.
    target: wanted mean patch size in bytes.

  Returns:
    The threshold in nats.

  Raises:
    ValueError: no threshold gives such patches, or entropies are NaN.
  """
  for _, entropies in scored:
    patching.check_entropies(entropies)
  smallest, largest = possible_means(scored, rule)
  if not smallest <= target <= largest:
    raise ValueError(
      f"The mean patch size must be between {smallest:.4g} and {largest:.4g} bytes under "
      f"this rule and on this text, got {target}."
    )
  low, high = _LOWEST, _highest(rule)  # the mean grows with the threshold
  while high - low > _PRECISION:
    middle = (low + high) / 2
    if _mean(scored, rule, middle) < target:
      low = middle
    else:
      high = middle
  return min((high, low), key=lambda t: abs(_mean(scored, rule, t) - target))


def _highest(rule: PatchingConfig) -> float:
  return _HIGHEST_SUM if rule.cumulative else _HIGHEST


def _mean(scored: Sequence[Scored], rule: PatchingConfig, threshold: float) -> float:
  """The mean of `patch_lengths`, from the number of patches alone."""
  rule = dataclasses.replace(rule, threshold=threshold, coarser=())
  num_bytes = num_patches = 0
  for tokens, entropies in scored:
    boundaries = patching.find_boundaries(tokens[None], rule, entropies[None])
    starts = patching.starts_from_boundaries(boundaries, include_next=False)
    num_bytes += len(tokens)
    num_patches += int(np.count_nonzero(starts))
  return num_bytes / num_patches
