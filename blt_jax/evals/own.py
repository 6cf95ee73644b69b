"""Tasks that a user writes as a file: what its rows have says what is asked."""

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from blt_jax.evals import language, translation
from blt_jax.evals.choices import MultipleChoice
from blt_jax.evals.task import Choice, Continue, Item, Request, Row, Score, Task, check_texts
from blt_jax.evals.translation import Translation

_SHOTS = 1000  # all that there are
_MAX_BYTES = 256


class OwnChoice(MultipleChoice):
  """Rows of `context`, `choices` and the index of the right one, `label`."""

  def context(self, row: Row) -> str:
    """What is before the choices."""
    return row["context"]

  def check(self, row: Row) -> None:
    """Raises ValueError as `MultipleChoice`, or where there is nothing to choose from."""
    super().check(row)
    if len(row["choices"]) < 2:
      raise ValueError(f"has choices {row['choices']!r}; it needs two or more.")

  def requests(self, item: Item) -> list[Request]:
    """The choices, after examples with theirs."""
    shots = "".join(f"{s['context']} {s['choices'][s['label']]}\n\n" for s in item.shots)
    continuations = tuple(f" {choice}" for choice in self.choices(item.row))
    return [Choice(shots + self.context(item.row), continuations)]


class OwnAnswer(Task):
  """Rows of `prompt` and `answer`, a text or a list of texts that are all right.

  A row may have `stop`, a list of texts (a newline if it has none), and `max_bytes`.
  """

  def answers(self, row: Row) -> list[str]:
    """All right answers."""
    return row["answer"] if isinstance(row["answer"], list) else [row["answer"]]

  def check(self, row: Row) -> None:
    """Raises ValueError where a row lacks a field, or has no right answer."""
    super().check(row)
    check_texts(row, "prompt")
    answers, stop, most = self.answers(row), self.stop(row), self.max_bytes(row)
    if not answers or not all(isinstance(a, str) and a.strip() for a in answers):
      raise ValueError(f"has answer {row['answer']!r}; it must be a text, or a list of texts.")
    if not isinstance(stop, list) or not all(isinstance(s, str) and s for s in stop):
      raise ValueError(f"has stop {stop!r}; it must be a list of texts.")
    if not isinstance(most, int) or isinstance(most, bool) or most < 1:
      raise ValueError(f"has max_bytes {most!r}; it must be a number from 1 on.")
    if not any(_can_be_given(a.strip(), stop, most) for a in answers):
      raise ValueError(
        f"has answer {row['answer']!r}, which can never be given: it has one of stop={stop}, "
        f"or more than max_bytes={most}."
      )

  def stop(self, row: Row) -> list[str]:
    """What ends an answer."""
    return row.get("stop", ["\n"])

  def max_bytes(self, row: Row) -> int:
    """The most bytes of an answer."""
    return row.get("max_bytes", _MAX_BYTES)

  def requests(self, item: Item) -> list[Request]:
    """The answer, after examples."""
    shots = "".join(f"{s['prompt']} {self.answers(s)[0]}\n\n" for s in item.shots)
    row = item.row
    return [Continue(shots + row["prompt"], tuple(self.stop(row)), self.max_bytes(row))]

  def score(self, item: Item, answers: Sequence[Any]) -> Score:
    """Whether it is one of the answers, white space around it aside."""
    right = [answer.strip() for answer in self.answers(item.row)]
    return {"exact_match": float(answers[0].strip() in right)}


def _can_be_given(answer: str, stop: Sequence[str], most: int) -> bool:
  return len(answer.encode()) <= most and not any(s in answer for s in stop)


Kind = Callable[[str], Task]
_CHOICE = ("context", "choices", "label")
_ANSWER = ("prompt", "answer")
_TRANSLATION = ("source", "target", "source_language", "target_language")
KINDS: Mapping[tuple[str, ...], Kind] = {
  _CHOICE: lambda name: OwnChoice(name, name, _CHOICE, _SHOTS, "acc_norm"),
  _ANSWER: lambda name: OwnAnswer(name, name, _ANSWER, _SHOTS, "exact_match"),
  _TRANSLATION: lambda name: Translation(name, name, _TRANSLATION, _SHOTS, "bleu"),
  ("lang", "en", "xx"): translation.with_english,
  language.DOCUMENTS.fields: lambda name: dataclasses.replace(
    language.DOCUMENTS, name=name, file=name
  ),
}


def find(name: str, row: Row) -> Task | None:
  """The task of a file.

  Args:
    name: of the task, that of the file without .jsonl.
    row: its first.

  Returns:
    The task, or None where the row is of no kind.
  """
  for fields, kind in KINDS.items():
    if all(field in row for field in fields):
      return kind(name)
  return None


def nearest_fields(row: Row) -> str:
  """The fields of the kind that a row is nearest to."""
  return ", ".join(max(KINDS, key=lambda fields: _nearness(fields, row)))


def _nearness(fields: Iterable[str], row: Row) -> float:
  near = [(field in row) + bool(difflib.get_close_matches(field, row, n=1)) for field in fields]
  return sum(near) / len(near)
