"""A stream of documents again and again."""

import contextlib
from typing import Any

import grain

from blt_jax.data.reading.documents import Dataset, name_files


class Repeat(grain.IterDataset):
  """A stream again and again; one without documents is an error, and not read for ever."""

  def __init__(self, name: str, parent: grain.IterDataset, num_epochs: int | None):
    """Takes the stream, its name for messages, and how often it is read; None is for ever."""
    super().__init__(parent)
    self._name, self._num_epochs = name, num_epochs

  def __iter__(self) -> grain.DatasetIterator:
    """Starts from the stream's start."""
    return _RepeatIterator(self.parents[0], self._name, self._num_epochs)


class _RepeatIterator(grain.DatasetIterator):
  """Its state: that of the stream, and how often it was read."""

  def __init__(self, stream: grain.IterDataset, name: str, num_epochs: int | None):
    self._elements = iter(stream)
    super().__init__(self._elements)
    self._stream, self._name, self._num_epochs = stream, name, num_epochs
    self._start, self._epoch = self._elements.get_state(), 0
    self._is_barren = True  # as far as it was read since its start

  def __next__(self) -> Any:
    while self._epoch != self._num_epochs:
      with contextlib.suppress(StopIteration):
        element = next(self._elements)
        self._is_barren = False
        return element
      if self._is_barren:
        raise ValueError(
          f"The source {self._name!r} gave no document from its start to its end: its files "
          "are empty or were changed meanwhile, or all of their text is left out. They are "
          f"{name_files(_paths(self._stream))}; mend them, or leave the source out."
        )
      self._epoch, self._is_barren = self._epoch + 1, True
      if self._epoch != self._num_epochs:
        self._elements.set_state(self._start)
    raise StopIteration

  def get_state(self) -> dict[str, Any]:
    return {"parent": self._elements.get_state(), "epoch": self._epoch}

  def set_state(self, state: dict[str, Any]) -> None:
    self._elements.set_state(state["parent"])
    self._epoch, self._is_barren = state["epoch"], False


def _paths(dataset: Dataset) -> list[str]:
  """The files that a dataset reads."""
  own = list(getattr(dataset, "paths", ()))
  return own + [path for parent in dataset.parents for path in _paths(parent)]
