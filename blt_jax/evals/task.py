"""What a task is: rows of a file to requests to a model, and its answers to numbers.

Tasks are pure: they open no file and know no model.
"""

import abc
import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from blt_jax.evals import statistics
from blt_jax.evals.statistics import Estimate, Statistic

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


class FirstLine(Continue):
  """A `Continue` that also ends with the first line that is not blank, which is not cut."""


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
    groups: fields whose values are reported one by one, where rows have them.
  """

  name: str
  file: str
  fields: tuple[str, ...]
  num_shots: int = 0
  metric: str = "acc"
  groups: tuple[str, ...] = ()

  def load(self, rows: Sequence[Row], shots: Sequence[Row] = ()) -> list[Item]:
    """Items of rows; the first `num_shots` of `shots` become examples of each.

    Raises:
      ValueError: a row lacks a field, or has no right answer.
    """
    for part in (rows, shots):
      for number, row in enumerate(part, 1):
        place = getattr(row, "place", f"Row {number}")
        try:
          self.check(row)
        except ValueError as error:
          raise ValueError(f"{place} of {self.name} {error}") from error
    return [Item(row, self.shots_of(row, shots)) for row in rows]

  def check(self, row: Row) -> None:
    """Raises ValueError where a row lacks a field; the message goes on from "Row 3 of NAME"."""
    missing = [name for name in self.fields if name not in row]
    if missing:
      near = difflib.get_close_matches(missing[0], row, n=1)
      hint = f" Is it {near[0]!r}?" if near else ""
      raise ValueError(
        f"has no field {missing[0]!r}; its fields must be {', '.join(self.fields)}.{hint}"
      )
    empty = [name for name in self.fields if row[name] is None]
    if empty:
      raise ValueError(f"has {empty[0]} None; it must have a value.")

  def check_ready(self) -> None:
    """Raises ValueError or ImportError where the task could not be scored in the end."""
    return  # most can

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

  def statistics(self, scores: Sequence[Score]) -> dict[str, Statistic]:
    """How the numbers of the task follow from those of its items: as their means."""
    return {name: statistics.of_means([s[name] for s in scores]) for name in scores[0]}

  def summarise(self, scores: Sequence[Score]) -> dict[str, Estimate]:
    """Numbers of the task, each with its standard error."""
    return {name: found.estimate() for name, found in self.statistics(scores).items()}

  def signatures(self, items: Sequence[Item]) -> dict[str, str]:
    """Metric -> how a library computes it, where one does."""
    del items
    return {}


def check_texts(row: Row, *fields: str) -> None:
  """Raises ValueError where a field is no text, or an empty one; see `Task.check`."""
  for name in fields:
    if not isinstance(row[name], str) or not row[name]:
      raise ValueError(f"has {name} {row[name]!r}; it must be a text that is not empty.")
