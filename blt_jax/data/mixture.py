"""One dataset from several sources: shuffled, repeated, weighted, and shared by hosts."""

import zlib
from collections.abc import Mapping
from typing import Any

import grain

from blt_jax.data.reading.documents import Dataset
from blt_jax.data.repeat import Repeat

_READ = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)  # threads cost more


def mix(
  sources: Mapping[str, tuple[Dataset, float]],
  seed: int | None,
  shuffle_window: int = 10_000,
  num_epochs: int | None = None,
  host: tuple[int, int] = (0, 1),
) -> Dataset:
  """Mixes sources of documents.

  The order depends on the sources and the seed only, and not on the number of Grain's
  worker processes. The shares of the hosts are disjoint and, in each epoch of a source,
  together all of it; they have the weights of the whole.

  Args:
    sources: name -> dataset and weight. Weights are relative numbers of documents.
    seed: of the shuffles, in [0, 2**32); None keeps every source in its order. Sources with
      random access are shuffled globally and anew in each epoch; streams within windows.
    shuffle_window: documents in a window, which a host holds in memory.
    num_epochs: None repeats every source for ever. A number takes every document of every
      source that often, source after source, and the weights do not matter.
    host: (index, count) of the hosts that share the data.

  Returns:
    A MapDataset where all sources are MapDatasets, else an IterDataset.

  Raises:
    ValueError: no sources, an empty one, or a bad weight, seed, window or host; while it is
      read, a source that gives nothing any more.
  """
  _check(sources, seed, shuffle_window, num_epochs, host)
  parts = {
    name: _prepare(name, dataset, seed, shuffle_window, num_epochs, host)
    for name, (dataset, _) in sources.items()
  }
  if all(isinstance(part, grain.MapDataset) for part in parts.values()):
    if len(parts) == 1:
      return parts.popitem()[1]  # what Grain puts around it costs time
    if num_epochs is not None:
      return grain.MapDataset.concatenate(list(parts.values()))
    return grain.MapDataset.mix(list(parts.values()), [w for _, w in sources.values()])
  streams = {
    name: part.to_iter_dataset(_READ) if isinstance(part, grain.MapDataset) else part
    for name, part in parts.items()
  }
  if num_epochs is not None:
    return EveryNth(_Chain(list(streams.values())))
  return EveryNth(
    grain.IterDataset.mix(list(streams.values()), [w for _, w in sources.values()])
  )


def _check(sources, seed, shuffle_window, num_epochs, host):
  if not sources:
    raise ValueError("A mixture needs one source at least.")
  for name, (dataset, weight) in sources.items():
    if not 0 < weight < float("inf"):
      raise ValueError(f"The weight of the source {name!r} must be above 0, got {weight}.")
    if isinstance(dataset, grain.MapDataset) and not len(dataset):
      raise ValueError(f"The source {name!r} holds no document.")
  if seed is not None and not 0 <= seed < 2**32:
    raise ValueError(f"The seed of a mixture must be in [0, 2**32), got {seed}.")
  if shuffle_window < 1:
    raise ValueError(f"shuffle_window must be 1 or more documents, got {shuffle_window}.")
  if num_epochs is not None and num_epochs < 1:
    raise ValueError(f"num_epochs must be 1 or more, or None, got {num_epochs}.")
  index, count = host
  if not 0 <= index < count:
    raise ValueError(f"host must be (index, count) with 0 <= index < count, got {host}.")


def _prepare(name, dataset, seed, window, num_epochs, host):
  """One source: shuffled by a seed of its own, repeated, and this host's share."""
  index, count = host
  # Half of Grain's 32 bits: it adds the number of the window, and fails beyond them.
  own_seed = None if seed is None else zlib.crc32(f"{seed} {name}".encode()) % 2**31
  if isinstance(dataset, grain.MapDataset):
    if own_seed is not None:
      dataset = dataset.shuffle(own_seed)
    repeated = dataset.repeat(num_epochs)
    return repeated[index::count] if count > 1 else repeated
  # Repeated first: the share of a host is never empty, however few the documents.
  stream = Repeat(name, dataset, num_epochs)
  share = EveryNth(stream, index, count)
  if own_seed is None:
    return share
  return grain.experimental.WindowShuffleIterDataset(share, window_size=window, seed=own_seed)


class EveryNth(grain.IterDataset):
  """The elements `first`, `first + step`, ... of a stream.

  As the last step before `mp_prefetch` it divides a stream among the worker processes: each
  reads all of it and keeps its share, and together they give the order of the stream.
  """

  def __init__(self, parent: grain.IterDataset, first: int = 0, step: int = 1):
    """Takes the stream and which of its elements to keep."""
    super().__init__(parent)
    self._first, self._step = first, step

  def __iter__(self) -> grain.DatasetIterator:
    """Starts from the stream's start."""
    return _EveryNthIterator(self.parents[0].__iter__(), self._first, self._step)

  def set_slice(self, sl: slice, sequential_slice: bool = False) -> None:
    """Keeps a slice of what it kept, in place: how Grain tells a worker its share.

    Raises:
      ValueError: a consecutive part is asked for; where it starts in a stream is unknown.
    """
    if sequential_slice or sl.stop is not None:
      raise ValueError("A stream has no consecutive parts; use sequential_slice=False.")
    self._first += (sl.start or 0) * self._step
    self._step *= sl.step or 1


class _EveryNthIterator(grain.DatasetIterator):
  """Its state: that of the stream, and how many elements to leave out next."""

  def __init__(self, parent: grain.DatasetIterator, first: int, step: int):
    super().__init__(parent)
    self._elements = parent
    self._step = step
    self._skip = first

  def __next__(self) -> Any:
    while self._skip:
      next(self._elements)
      self._skip -= 1
    element = next(self._elements)
    self._skip = self._step - 1
    return element

  def get_state(self) -> dict[str, Any]:
    return {"parent": self._elements.get_state(), "skip": self._skip}

  def set_state(self, state: dict[str, Any]) -> None:
    self._elements.set_state(state["parent"])
    self._skip = state["skip"]


class _Chain(grain.IterDataset):
  """One stream after another."""

  def __iter__(self) -> grain.DatasetIterator:
    return _ChainIterator([stream.__iter__() for stream in self.parents])


class _ChainIterator(grain.DatasetIterator):
  """Its state: the states of all streams; those that ended give no more."""

  def __init__(self, parents: list[grain.DatasetIterator]):
    super().__init__(parents)
    self._iterators = parents

  def __next__(self) -> Any:
    for iterator in self._iterators:
      for element in iterator:
        return element
    raise StopIteration

  def get_state(self) -> dict[str, Any]:
    return {"parents": [iterator.get_state() for iterator in self._iterators]}

  def set_state(self, state: dict[str, Any]) -> None:
    for iterator, parent in zip(self._iterators, state["parents"], strict=True):
      iterator.set_state(parent)
