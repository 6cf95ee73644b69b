"""Interpolated n-gram models of bytes, and the entropies of their predictions.

Modified Kneser-Ney smoothing: Chen and Goodman, "An empirical study of smoothing
techniques for language modeling", 1999, section 3. With c the count of a pair, N the sum
of the counts of its context and D(c) a discount,

  p(byte | context) = (c - D(c)) / N + backoff(context) p(byte | shorter context)

where the longest contexts have plain counts, and a shorter one's count says after how many
different longer contexts the byte was seen.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from blt_jax.entropy.ngram_counts import PairCounter, Pairs, pair_keys


@dataclasses.dataclass(frozen=True)
class Order:
  """The model of one order: n pairs in m contexts.

  Attributes:
    size: bytes of context.
    keys: uint64 [n] of the pairs, ascending.
    probabilities: [n] of their next bytes.
    owner: int [n], their context.
    contexts: uint64 [m], ascending, the newest byte lowest.
    counts: int64 [m].
    backoff: [m], the weight of the shorter context.
    entropies: [m] nats.
  """

  size: int
  keys: np.ndarray
  probabilities: np.ndarray
  owner: np.ndarray
  contexts: np.ndarray
  counts: np.ndarray
  backoff: np.ndarray
  entropies: np.ndarray


def estimate_orders(counter: PairCounter) -> Iterator[Order]:
  """Estimates the orders of all that was counted, shortest contexts first."""
  order = None
  for size, pairs, places in zip(counter.orders, *counter.finish(), strict=True):
    if not len(pairs.keys):  # no document has contexts that long
      return
    order = estimate(size, pairs, order, places)
    yield order


def estimate(
  size: int, pairs: Pairs, shorter: Order | None = None, places: np.ndarray | None = None
) -> Order:
  """Estimates one order from its counts.

  Args:
    size: bytes of context.
    pairs: as from `PairCounter.finish`.
    shorter: the order below, into which it backs off; None for even chances.
    places: int [n], where each pair is found among those of `shorter`.

  Returns:
    The order. Its entropies are exact for its probabilities: sums over the bytes seen,
    and what the entropy of the shorter context has for the others.
  """
  contexts = pairs.keys >> np.uint64(8)
  first = np.flatnonzero(np.diff(contexts, prepend=~contexts[:1]))
  owner = np.repeat(np.arange(len(first)), np.diff(first, append=len(contexts)))

  def total(values):
    return np.add.reduceat(values, first)

  counts, discounts = total(pairs.counts), _discounts(pairs.counts)
  backoff = total(discounts) / counts
  if shorter is None or places is None:
    below, entropy_below = np.full(len(owner), 1 / 256), np.log(256)
  else:
    below = shorter.probabilities[places]
    entropy_below = shorter.entropies[shorter.owner[places[first]]]
  probabilities = (pairs.counts - discounts) / counts[owner] + backoff[owner] * below
  unseen = np.maximum(1 - total(below), 0)
  entropy_unseen = np.maximum(entropy_below + total(below * np.log(below)), 0)
  entropies = -total(probabilities * np.log(probabilities))
  entropies += backoff * (entropy_unseen - np.log(backoff) * unseen)
  return Order(
    size, pairs.keys, probabilities, owner, contexts[first], counts, backoff, entropies
  )


def _discounts(counts: np.ndarray) -> np.ndarray:
  """D(c): three numbers, for counts of 1, 2, and 3 or more, estimated from the counts."""
  n = [int(np.count_nonzero(counts == i)) for i in (1, 2, 3, 4)]
  ratio = n[0] / max(n[0] + 2 * n[1], 1)
  estimates = [i - (i + 1) * ratio * n[i] / n[i - 1] if n[i - 1] else i / 2 for i in (1, 2, 3)]
  discounts = np.clip(estimates, 0.1, [0.95, 1.9, 2.9])  # small texts give wild ones
  return discounts[np.minimum(counts, 3) - 1]


def predict(
  order: Order, windows: np.ndarray, room: np.ndarray, below: np.ndarray
) -> np.ndarray:
  """Probabilities [n] of bytes, given those of the order below.

  Args:
    order: the model; contexts that it does not know leave `below` as it is.
    windows: uint64 [n] from `predicted_bytes`, with `room`.
    room: int [n].
    below: [n].
  """
  keys = pair_keys(windows, order.size)
  context, is_known = _find(order.contexts, keys >> np.uint64(8))
  pair, is_seen = _find(order.keys, keys)
  unseen = order.backoff[context] * below
  probabilities = np.where(is_seen, order.probabilities[pair], unseen)
  return np.where(is_known & (room >= order.size), probabilities, below)


def _find(keys: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  ascending = np.argsort(wanted)  # neighbours are found in the same cache lines
  place = np.empty(len(wanted), np.int64)
  place[ascending] = np.searchsorted(keys, wanted[ascending])
  place = np.minimum(place, len(keys) - 1)
  return place, keys[place] == wanted
