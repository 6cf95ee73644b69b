"""What a task is: rows of a file to requests to a model, and its answers to numbers.

Tasks are pure: they open no file and know no model.
"""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from blt_jax.evals import statistics
from blt_jax.evals.statistics import Estimate

Row = Mapping[str, Any]
Score = dict[str, float]


class Choice(NamedTuple):
  """Asks how likely each of several continuations is; answered by (nats, is_greedy) of each."""

  context: str
  continuations: tuple[str, ...]


class Text(NamedTuple):
  """Asks how likely a whole text is, its end not included; answered by nats."""

  text: str


class Continue(NamedTuple):
  """Asks what the model writes; answered by text, cut before the first of the stops."""

  prompt: str
  stop: tuple[str, ...]
  max_bytes: int


Request = Choice | Text | Continue


class Item(NamedTuple):
  """A row, and the rows that stand in its prompt as answered examples."""

  row: Row
  shots: tuple[Row, ...] = ()


@dataclasses.dataclass(frozen=True)
class Task(abc.ABC):
  """One task.

  Attributes:
    name: as users ask for it.
    file: of its rows, in a folder of data.
    fields: that each row has.
    num_shots: answered examples that its usual prompt has.
    metric: the one that it is quoted by.
    group: the field whose values are reported one by one, or "".
  """

  name: str
  file: str
  fields: tuple[str, ...]
  num_shots: int = 0
  metric: str = "acc"
  group: str = ""

  def load(self, rows: Sequence[Row], shots: Sequence[Row] = ()) -> list[Item]:
    """Items of rows; the first `num_shots` of `shots` become examples of each.

    Raises:
      ValueError: a row lacks a field, or has no right answer.
    """
    for number, row in enumerate([*rows, *shots], 1):
      self.check(number, row)
    return [Item(row, self.shots_of(row, shots)) for row in rows]

  def check(self, number: int, row: Row) -> None:
    """Raises ValueError where a row lacks a field."""
    missing = [name for name in self.fields if name not in row]
    if missing:
      raise ValueError(
        f"Row {number} of {self.name} has no field {missing[0]!r}; it needs {self.fields}."
      )

  def select(self, rows: Sequence[Row]) -> Sequence[Row]:
    """Which rows of its file count."""
    return rows

  def shots_of(self, row: Row, shots: Sequence[Row]) -> tuple[Row, ...]:
    """Which of the shots stand before a row."""
    del row
    return tuple(shots[: self.num_shots])

  @abc.abstractmethod
  def requests(self, item: Item) -> list[Request]:
    """What to ask a model."""

  @abc.abstractmethod
  def score(self, item: Item, answers: Sequence[Any]) -> Score:
    """Numbers of an item, given the answer to each of its requests."""

  def summarise(self, scores: Sequence[Score]) -> dict[str, Estimate]:
    """Numbers of the task: the means of those of its items."""
    return {name: statistics.mean([s[name] for s in scores]) for name in scores[0]}
