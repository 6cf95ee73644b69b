"""Tasks whose text is spoiled (paper, section 6.1): multiple choice, bits per byte."""

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from blt_jax.evals import noise
from blt_jax.evals.choices import MultipleChoice, best
from blt_jax.evals.language import BitsPerByte, per_byte
from blt_jax.evals.statistics import Statistic
from blt_jax.evals.task import Choice, Item, Request, Row, Score, Task, Text

STRENGTHS = (0.25, 0.5, 1.0)  # probabilities that a character gets the noise
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

  def check(self, row: Row) -> None:
    """As the clean task does."""
    self._clean.check(row)

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
    key = _key(item)

    def spoiled(text: str, piece: str) -> str:
      return noise.spoil(text, name, noise.generator(self.seed, name, key, f"{part} {piece}"))

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


@dataclasses.dataclass(frozen=True)
class NoisedText(BitsPerByte):
  """Every document clean, then with each noise at each of `STRENGTHS`.

  Attributes:
    seed: of the noises.
  """

  seed: int = 0

  def requests(self, item: Item) -> list[Request]:
    """The clean document, then noise by noise, from weak to strong."""
    text, key = item.row["text"], _key(item)
    spoiled = [
      noise.spoil(text, name, noise.generator(self.seed, name, key, "text"), strength)
      for name in noise.NOISES
      for strength in STRENGTHS
    ]
    return [Text(text), *map(Text, spoiled)]

  def score(self, item: Item, answers: Sequence[Any]) -> Score:
    """`bits` of the clean document, its `bytes`, and the bits that each noise adds."""
    clean = super().score(item, answers)
    added = [-float(nats) / math.log(2) - clean["bits"] for nats in answers[1:]]
    return clean | dict(zip(self._added(), added, strict=True))

  def statistics(self, scores: Sequence[Score]) -> dict[str, Statistic]:
    """`extra_bits_per_byte`: added bits over clean bytes, mean over noises; and of each."""
    strongest = [self.metric_of(name, STRENGTHS[-1]) for name in noise.NOISES]
    means = [
      {"bytes": s["bytes"], self.metric: sum(s[n] for n in strongest) / len(strongest)}
      for s in scores
    ]
    each = {name: per_byte(scores, name) for name in self._added()}
    return {self.metric: per_byte(means, self.metric)} | super().statistics(scores) | each

  def metric_of(self, name: str, strength: float) -> str:
    """The name of what a noise costs at a strength."""
    return f"{self.metric}_{name}_{strength:g}"

  def _added(self) -> list[str]:
    return [self.metric_of(name, s) for name in noise.NOISES for s in STRENGTHS]


def _key(item: Item) -> str:
  return json.dumps(dict(item.row), sort_keys=True)


def of(task: Task) -> Task | None:
  """The noised form of a task, or None where there is none."""
  name = f"{task.name}_noise"
  if isinstance(task, MultipleChoice):
    return Noised(name, task.file, task.fields, task.num_shots, "acc_norm", clean=task)
  if isinstance(task, BitsPerByte):
    metric = "extra_bits_per_byte"
    return NoisedText(name, task.file, task.fields, metric=metric, groups=task.groups)
  return None
