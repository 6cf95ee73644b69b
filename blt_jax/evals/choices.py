"""Multiple choice: the continuation that is the likeliest is the answer.

Prompts are those of lm-evaluation-harness 0.4.13.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from blt_jax.evals.task import Choice, Item, Request, Row, Score, Task


@dataclasses.dataclass(frozen=True)
class MultipleChoice(Task):
  """A context, and choices of which one is right."""

  def context(self, row: Row) -> str:
    """What stands before the choices."""
    raise NotImplementedError

  def choices(self, row: Row) -> list[str]:
    """The choices, without the space before each."""
    return row["choices"]

  def check(self, row: Row) -> None:
    """Raises ValueError where a row lacks a field, or its label is none of the choices."""
    super().check(row)
    choices, label = self.choices(row), self.label(row)
    if not isinstance(choices, list) or not all(isinstance(c, str) for c in choices):
      raise ValueError(f"has choices {choices!r}; they must be a list of texts.")
    count = len(choices)
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < count:
      raise ValueError(
        f"has label {label!r}; it must be the index of one of its {count} choices, from 0 on."
      )
    if not isinstance(self.context(row), str):
      raise ValueError(f"has context {self.context(row)!r}; it must be a text.")

  def label(self, row: Row) -> Any:
    """Index of the right choice."""
    return row["label"]

  def requests(self, item: Item) -> list[Request]:
    """One, with all choices."""
    continuations = tuple(f" {choice}" for choice in self.choices(item.row))
    return [Choice(self.context(item.row), continuations)]

  def score(self, item: Item, answers: Sequence[Any]) -> Score:
    """Whether the likeliest is right: `acc`; per character and per byte of a choice."""
    nats = [nats for nats, _ in answers[0]]
    choices, label = self.choices(item.row), self.label(item.row)
    return {
      "acc": float(best(nats) == label),
      "acc_norm": float(best(nats, choices) == label),
      "acc_bytes": float(best(nats, [choice.encode() for choice in choices]) == label),
    }


def best(nats: Sequence[float], choices: Sequence[str | bytes] | None = None) -> int:
  """The first of the likeliest; where choices are given, by their characters or bytes."""
  sizes = [1] * len(nats) if choices is None else [max(len(c), 1) for c in choices]
  ratios = [n / size for n, size in zip(nats, sizes, strict=True)]
  return max(range(len(ratios)), key=ratios.__getitem__)


class HellaSwag(MultipleChoice):
  """How a description goes on."""

  def context(self, row: Row) -> str:
    """The text so far."""
    return row["ctx"]

  def choices(self, row: Row) -> list[str]:
    """Ends of the text."""
    return row["endings"]


class Question(MultipleChoice):
  """ARC: a question and its answers."""

  def context(self, row: Row) -> str:
    """The question."""
    return f"Question: {row['question']}\nAnswer:"


class Piqa(MultipleChoice):
  """How to do something."""

  def context(self, row: Row) -> str:
    """The goal."""
    return f"Question: {row['goal']}\nAnswer:"

  def choices(self, row: Row) -> list[str]:
    """Two ways."""
    return [row["sol1"], row["sol2"]]


class Mmlu(MultipleChoice):
  """Questions of a subject, after others of it with their answers."""

  def shots_of(self, row: Row, shots: Sequence[Row]) -> tuple[Row, ...]:
    """The first of the row's subject."""
    return tuple(s for s in shots if s["subject"] == row["subject"])[: self.num_shots]

  def requests(self, item: Item) -> list[Request]:
    """The letters of the answers."""
    subject = item.row["subject"].replace("_", " ")
    head = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
    shots = [f"{self.context(s)} {'ABCD'[s['label']]}\n\n" for s in item.shots]
    context = head + "".join(shots) + self.context(item.row)
    return [Choice(context, (" A", " B", " C", " D"))]

  def context(self, row: Row) -> str:
    """A question and what its letters mean."""
    lines = [f"{x}. {choice}" for x, choice in zip("ABCD", row["choices"], strict=True)]
    return "\n".join([row["question"].strip(), *lines, "Answer:"])

  def score(self, item: Item, answers: Sequence[Any]) -> Score:
    """Whether the likeliest letter is right."""
    nats = [nats for nats, _ in answers[0]]
    return {"acc": float(best(nats) == item.row["label"])}


class Blimp(MultipleChoice):
  """Which of two sentences is grammatical."""

  def context(self, row: Row) -> str:
    """None."""
    del row
    return ""

  def choices(self, row: Row) -> list[str]:
    """The good sentence, the bad one."""
    return [row["good"], row["bad"]]

  def label(self, row: Row) -> int:
    """The first."""
    del row
    return 0

  def score(self, item: Item, answers: Sequence[Any]) -> Score:
    """Whether the good one is the likelier."""
    return {"acc": super().score(item, answers)["acc"]}


TASKS = (
  HellaSwag("hellaswag", "hellaswag_val", ("ctx", "endings", "label"), metric="acc_norm"),
  Question("arc_easy", "arc_easy_test", ("question", "choices", "label"), metric="acc_norm"),
  Question(
    "arc_challenge", "arc_challenge_test", ("question", "choices", "label"), metric="acc_norm"
  ),
  Piqa("piqa", "piqa_valid", ("goal", "sol1", "sol2", "label")),
  Mmlu(
    "mmlu",
    "mmlu_test",
    ("subject", "question", "choices", "label"),
    num_shots=5,
    groups=("subject",),
  ),
  Blimp("blimp", "blimp", ("uid", "good", "bad"), groups=("uid",)),
)
