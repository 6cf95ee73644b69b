"""Counts bytes after their contexts, as Kneser-Ney smoothing wants them.

A pair is a context of n bytes with the byte that followed it. Its key is the uint64 whose
lowest byte is that next one, the second lowest the newest of the context, and so on.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from blt_jax import tokenizer
from blt_jax.entropy.contexts import MAX_ORDER, context_lengths, context_windows

_CHUNK_BYTES = 16 << 20  # counted at once


class Pairs(NamedTuple):
  """Pairs of one order: keys uint64 [n], ascending, and counts int64 [n]."""

  keys: np.ndarray
  counts: np.ndarray


class PairCounter:
  """Counts pairs, each under the longest context that it has.

  Memory is bounded: an order that comes to hold more than `max_pairs` loses its rarest
  half, which counts one order down from then on.

  Attributes:
    orders: bytes of context, ascending from 0.
  """

  def __init__(self, orders: Sequence[int], reset_at_newline: bool, max_pairs: int = 1 << 24):
    """Takes the bytes of context to distinguish, ascending, from 1 to `MAX_ORDER`."""
    self.orders = (0, *orders)
    sizes = np.arange(MAX_ORDER + 1)
    self._longest = np.searchsorted(self.orders, sizes, side="right") - 1  # order by size
    self._reset_at_newline = reset_at_newline
    self._max_pairs = max_pairs
    self._pairs = [
      _unite(np.zeros(0, np.uint64), np.zeros(0, np.int64))[0] for _ in self.orders
    ]

  def add(self, documents: Sequence[bytes]) -> None:
    """Counts the bytes of documents."""
    windows, room = predicted_bytes(documents, self._reset_at_newline)
    longest = self._longest[np.minimum(room, MAX_ORDER)]
    for k, order in enumerate(self.orders):
      self._add(k, count_keys(pair_keys(windows[longest == k], order)))

  def _add(self, k: int, new: Pairs) -> None:
    pairs = merge(self._pairs[k], new)[0]
    if k and len(pairs.keys) > self._max_pairs:
      is_rare = pairs.counts <= largest_rare(pairs, self._max_pairs)
      self._add(k - 1, _shorten(pairs.keys[is_rare], self.orders[k - 1])[0])
      pairs = Pairs(pairs.keys[~is_rare], pairs.counts[~is_rare])
    self._pairs[k] = pairs

  def finish(self) -> tuple[list[Pairs], list[np.ndarray | None]]:
    """Adds to each order how many different longer contexts each pair has.

    Returns:
      The pairs of each order, and int32 [n] where each of them is found, without its
      oldest bytes, among the pairs one order down (None for order 0).
    """
    pairs = list(self._pairs)
    places: list[np.ndarray | None] = [None] * len(pairs)
    for k in range(len(pairs) - 1, 0, -1):
      cut, place = _shorten(pairs[k].keys, self.orders[k - 1])
      pairs[k - 1], new_place = merge(pairs[k - 1], cut)
      places[k] = new_place[place]
    return pairs, places


def chunks(documents: Iterable[bytes]) -> Iterator[list[bytes]]:
  """Groups documents; one that is longer than a chunk is cut, and loses some context."""
  chunk, size = [], 0
  for document in documents:
    for start in range(0, len(document), _CHUNK_BYTES):
      chunk.append(document[start : start + _CHUNK_BYTES])
      size += len(chunk[-1])
      if size >= _CHUNK_BYTES:
        yield chunk
        chunk, size = [], 0
  if chunk:
    yield chunk


def predicted_bytes(
  documents: Sequence[bytes], reset_at_newline: bool
) -> tuple[np.ndarray, np.ndarray]:
  """Each byte with what it is predicted from.

  Returns:
    uint64 [n], each byte of all documents below the seven before it, and int [n], how
    many of those belong to its context.
  """
  ids = [tokenizer.encode(d, add_eos=False) for d in documents]
  tokens = np.concatenate([np.zeros(0, np.int32), *ids])
  windows = context_windows(tokens)
  room = np.append(0, context_lengths(tokens, reset_at_newline))[:-1]
  is_byte = tokens >= tokenizer.OFFSET
  return windows[is_byte], room[is_byte]


def pair_keys(windows: np.ndarray, order: int) -> np.ndarray:
  """Keys of the pairs with `order` bytes of context, from `predicted_bytes`."""
  return windows & np.uint64((1 << 8 * (order + 1)) - 1)


def largest_rare(pairs: Pairs, most: int) -> int:
  """A count: fewer than half of `most` pairs are there more often."""
  half = most // 2
  return int(np.partition(pairs.counts, -half)[-half])


def count_keys(keys: np.ndarray) -> Pairs:
  """Counts keys uint64 [n]."""
  keys = np.sort(keys)
  first = np.flatnonzero(np.diff(keys, prepend=~keys[:1]))
  return Pairs(keys[first], np.diff(first, append=len(keys)))


def _shorten(keys: np.ndarray, order: int) -> tuple[Pairs, np.ndarray]:
  """Counts each key once; with the place of each in the result."""
  return _unite(pair_keys(keys, order), np.ones(len(keys), np.int64))


def merge(old: Pairs, new: Pairs) -> tuple[Pairs, np.ndarray]:
  """Both together, and where the pairs of the second are in the result."""
  united, place = _unite(*(np.concatenate(both) for both in zip(old, new, strict=True)))
  return united, place[len(old.keys) :]


def _unite(keys: np.ndarray, counts: np.ndarray) -> tuple[Pairs, np.ndarray]:
  """Makes keys unique, with the place of each in the result."""
  order = np.argsort(keys, kind="stable")  # fast: they consist of a few sorted runs
  keys = keys[order]
  is_first = np.diff(keys, prepend=~keys[:1]) != 0
  place = np.empty(len(keys), np.int32)
  place[order] = np.cumsum(is_first, dtype=np.int32) - 1
  first = np.flatnonzero(is_first)
  return Pairs(keys[first], np.add.reduceat(counts[order], first)), place
