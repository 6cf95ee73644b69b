"""Documents transformed in worker processes, in the order they have without."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from typing import Any

import grain
import jax

from blt_jax.data.reading.documents import Dataset

_NO_THREADS = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
_BUFFER = 16  # documents that wait in each worker process


def transform(
  documents: Dataset, function: Callable[[Any], Any], num_workers: int = 0
) -> grain.IterDataset:
  """Applies a function to each document.

  The order does not depend on the number of workers. Worker processes use JAX on the CPU
  only, whatever this process uses. Grain's worker processes read absl's flags, so a script
  that parses none calls `absl.flags.FLAGS.mark_as_parsed()` first.

  Args:
    documents: as `mixture.mix` gives them; elements that are None are left out.
    function: picklable.
    num_workers: processes; 0 for none but this one.

  Returns:
    A dataset whose state does not depend on the number of workers where `documents` is a
    MapDataset; a stream goes on with as many workers as it was saved with.
  """
  if isinstance(documents, grain.MapDataset):
    return _InOrder(documents, function, num_workers)
  return _in_processes(documents.map(function), num_workers)


def _in_processes(dataset: grain.IterDataset, num_workers: int) -> grain.IterDataset:
  options = grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=_BUFFER)
  return dataset.mp_prefetch(options, worker_init_fn=_start_worker)


def _start_worker(worker_index: int, worker_count: int) -> None:
  """Runs first in each worker process."""
  del worker_index, worker_count
  for number in (signal.SIGINT, signal.SIGTERM):  # sent to a whole group: the parent decides
    signal.signal(number, signal.SIG_IGN)
  os.environ["CUDA_VISIBLE_DEVICES"] = ""
  jax.config.update("jax_platforms", "cpu")
  threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
  """Ends this process when its parent is gone, be it killed, and be it before this."""
  parent = multiprocessing.parent_process()
  if parent is not None:
    parent.join()  # a pipe that only the parent holds open
    os._exit(1)


@contextlib.contextmanager
def unsignalled() -> Iterator[None]:
  """Keeps SIGINT and SIGTERM from workers that threads of the block start, from their start."""
  resource_tracker.ensure_running()  # in the block, it would let them through again
  before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _InOrder(grain.IterDataset):
  """The elements of a MapDataset from any index on, transformed here or in processes."""

  def __init__(
    self, dataset: grain.MapDataset, function: Callable[[Any], Any], num_workers: int
  ):
    super().__init__()
    self._options = dataset, function, num_workers

  def __iter__(self) -> grain.DatasetIterator:
    return _InOrderIterator(*self._options)


class _InOrderIterator(grain.DatasetIterator):
  """Its state: the index of the next element."""

  def __init__(
    self, dataset: grain.MapDataset, function: Callable[[Any], Any], num_workers: int
  ):
    super().__init__()
    self._dataset, self._function, self._num_workers = dataset, function, num_workers
    self._index = 0
    self._elements: grain.DatasetIterator | None = None  # starts when it is needed

  def __next__(self) -> Any:
    element = None
    while element is None:
      element = self._from_workers() if self._num_workers else self._from_here()
      self._index += 1
    return element

  def _from_here(self) -> Any:
    """As Grain's iterators do it, which cost more than patching a short document."""
    if self._index >= len(self._dataset):
      raise StopIteration
    element = self._dataset[self._index]
    return None if element is None else self._function(element)

  def _from_workers(self) -> Any:
    if self._elements is None:
      # Elements that are None must come through: workers take turns by the index.
      rest = self._dataset[self._index :].map(self._function)
      stream = rest.to_iter_dataset(_NO_THREADS, allow_nones=True)
      self._elements = iter(_in_processes(stream, self._num_workers))
    return next(self._elements)

  def get_state(self) -> dict[str, int]:
    return {"index": self._index}

  def set_state(self, state: dict[str, int]) -> None:
    self.close()
    self._index = state["index"]

  def close(self) -> None:
    """Ends the worker processes; they start again if more is asked for."""
    if self._elements is not None:
      self._elements.close()
      self._elements = None
