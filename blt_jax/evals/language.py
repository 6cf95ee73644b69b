"""How well a model predicts text: LAMBADA's last words, and bits per byte of documents."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from blt_jax.evals import statistics
from blt_jax.evals.statistics import Estimate
from blt_jax.evals.task import Choice, Item, Request, Row, Score, Task, Text


@dataclasses.dataclass(frozen=True)
class Lambada(Task):
  """The last word of a passage, which only the whole passage tells."""

  def check(self, number: int, row: Row) -> None:
    """Raises ValueError where a row lacks its text, or the text a space."""
    super().check(number, row)
    if " " not in row["text"]:
      raise ValueError(f"Row {number} of {self.name} has no last word to predict.")

  def requests(self, item: Item) -> list[Request]:
    """The word after the last space."""
    context, _, word = item.row["text"].rpartition(" ")
    return [Choice(context, (f" {word}",))]

  def score(self, item: Item, answers: Sequence[Any]) -> Score:
    """`acc`, whether greedy decoding writes it, and `log_likelihood` in nats."""
    ((nats, is_greedy),) = answers[0]
    return {"acc": float(is_greedy), "log_likelihood": float(nats)}

  def summarise(self, scores: Sequence[Score]) -> dict[str, Estimate]:
    """The mean of `acc`, and `perplexity` of the words."""
    nats = [s["log_likelihood"] for s in scores]
    samples = statistics.bootstrap(nats, lambda x: np.exp(-x.mean(axis=1)))
    value = math.exp(-math.fsum(nats) / len(nats))
    return {
      "acc": statistics.mean([s["acc"] for s in scores]),
      "perplexity": Estimate(value, float(samples.std(ddof=1))),
    }


@dataclasses.dataclass(frozen=True)
class BitsPerByte(Task):
  """Whole documents."""

  def requests(self, item: Item) -> list[Request]:
    """The document."""
    return [Text(item.row["text"])]

  def score(self, item: Item, answers: Sequence[Any]) -> Score:
    """`bits` of a document and its `bytes`."""
    return {
      "bits": -float(answers[0]) / math.log(2),
      "bytes": float(len(item.row["text"].encode())),
    }

  def summarise(self, scores: Sequence[Score]) -> dict[str, Estimate]:
    """`bits_per_byte` of all documents together."""
    bits, sizes = (np.array([s[name] for s in scores]) for name in ("bits", "bytes"))
    numbers = np.arange(len(scores))

    def ratio(samples: np.ndarray) -> np.ndarray:
      chosen = samples.astype(int)
      return bits[chosen].sum(axis=1) / sizes[chosen].sum(axis=1)

    error = float(statistics.bootstrap(numbers.tolist(), ratio).std(ddof=1))
    return {"bits_per_byte": Estimate(float(bits.sum() / sizes.sum()), error)}


TASKS = (
  Lambada("lambada", "lambada_test", ("text",)),
  BitsPerByte("bpb", "bpb", ("text",), metric="bits_per_byte"),
)
