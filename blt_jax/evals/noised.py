"""A multiple-choice task whose text is spoiled (paper, section 6.1)."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any

from blt_jax.evals import noise
from blt_jax.evals.choices import MultipleChoice, best
from blt_jax.evals.task import Choice, Item, Request, Row, Score, Task

_PARTS = ("prompt", "completion", "both")


@dataclasses.dataclass(frozen=True)
class Noised(Task):
  """Every item clean, then with each noise in its prompt, its completions, both.

  The delimiter between context and continuation is never spoiled.

  Attributes:
    clean: the task.
    seed: of the noises.
  """

  clean: MultipleChoice | None = None
  seed: int = 0

  def check(self, number: int, row: Row) -> None:
    """As the clean task does."""
    self._clean.check(number, row)

  @property
  def _clean(self) -> MultipleChoice:
    if self.clean is None:
      raise ValueError(f"{self.name} is a noise of no task.")
    return self.clean

  def requests(self, item: Item) -> list[Request]:
    """The clean one, then noise by noise."""
    (clean,) = self._clean.requests(item)
    return [clean, *(self._spoil(item, clean, *kind) for kind in _kinds())]

  def _spoil(self, item: Item, clean: Request, name: str, part: str) -> Choice:
    if not isinstance(clean, Choice):
      raise TypeError(f"{self.name} spoils multiple choice only.")
    key, spoil = json.dumps(dict(item.row), sort_keys=True), noise.NOISES[name]

    def spoiled(text: str, piece: str) -> str:
      return spoil(text, noise.generator(self.seed, name, key, f"{part} {piece}"))

    context, choices = clean.context, [c.removeprefix(" ") for c in clean.continuations]
    if part != "completion":
      context = spoiled(context, "prompt")
    if part != "prompt":
      choices = [spoiled(choice, str(i)) for i, choice in enumerate(choices)]
    return Choice(context, tuple(f" {choice}" for choice in choices))

  def score(self, item: Item, answers: Sequence[Any]) -> Score:
    """Means over noises and parts; of each noise; and what noise costs."""
    label = self._clean.label(item.row)
    asked = [r for r in self.requests(item) if isinstance(r, Choice)]
    right = [_is_right(*both, label) for both in zip(asked, answers, strict=True)]
    by_noise = {
      name: sum(right[1 + i * len(_PARTS) :][: len(_PARTS)]) / len(_PARTS)
      for i, name in enumerate(noise.NOISES)
    }
    mean = sum(by_noise.values()) / len(by_noise)
    named = {f"acc_norm_{name}": value for name, value in by_noise.items()}
    return {"acc_norm": mean, "acc_norm_difference": mean - right[0]} | named


def _kinds() -> Iterator[tuple[str, str]]:
  return ((name, part) for name in noise.NOISES for part in _PARTS)


def _is_right(asked: Choice, answer: Sequence[Any], label: int) -> float:
  """Whether the likeliest per character is the right one."""
  choices = [c.removeprefix(" ") for c in asked.continuations]
  return float(best([nats for nats, _ in answer], choices) == label)


def of(task: MultipleChoice) -> Noised:
  """The noised form of a task."""
  name = f"{task.name}_noise"
  return Noised(name, task.file, task.fields, task.num_shots, "acc_norm", clean=task)
