"""Batches whose rows come from several independent streams of documents."""

from collections.abc import Mapping
from typing import Any

import grain
import numpy as np


class RowStreams(grain.IterDataset):
  """Joins the batches of streams into larger ones, the rows of each stream together.

  A stream does not depend on the others: processes that run some of them each make
  together what one process makes that runs them all. The iterator's state is that of each
  stream by its number.
  """

  def __init__(self, streams: Mapping[int, grain.IterDataset]):
    """Takes the streams by their numbers; they end together, or never."""
    super().__init__(list(streams.values()))
    self._numbers = sorted(streams)
    self._streams = [streams[number] for number in self._numbers]

  def __iter__(self) -> grain.DatasetIterator:
    """Starts all streams."""
    return _RowStreamsIterator(self._numbers, [s.__iter__() for s in self._streams])


class _RowStreamsIterator(grain.DatasetIterator):
  def __init__(self, numbers: list[int], iterators: list[grain.DatasetIterator]):
    super().__init__(iterators)
    self._numbers, self._iterators = numbers, iterators

  def __next__(self) -> dict[str, np.ndarray]:
    batches = [next(iterator) for iterator in self._iterators]
    if len(batches) == 1:
      return batches[0]
    return {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}

  def get_state(self) -> dict[str, Any]:
    """Keys are texts, as in JSON."""
    pairs = zip(self._numbers, self._iterators, strict=True)
    return {str(number): iterator.get_state() for number, iterator in pairs}

  def set_state(self, state: dict[str, Any]) -> None:
    """Takes the states of these streams, and maybe of others."""
    for number, iterator in zip(self._numbers, self._iterators, strict=True):
      iterator.set_state(state[str(number)])
