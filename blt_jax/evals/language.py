"""How well a model predicts text: LAMBADA's last words, and bits per byte of documents."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from blt_jax.evals import statistics
from blt_jax.evals.statistics import Statistic
from blt_jax.evals.task import Choice, Item, Request, Row, Score, Task, Text, check_texts

_MOST_NATS = 700.0  # exp of more has no float


@dataclasses.dataclass(frozen=True)
class Lambada(Task):
  """The last word of a passage, which only the whole passage tells."""

  def check(self, row: Row) -> None:
    """Raises ValueError where a row lacks its text, or the text a word after a space."""
    super().check(row)
    check_texts(row, "text")
    if not row["text"].rpartition(" ")[2] or " " not in row["text"]:
      raise ValueError("has no last word to predict; its text must end in a space and a word.")

  def requests(self, item: Item) -> list[Request]:
    """The word after the last space."""
    context, _, word = item.row["text"].rpartition(" ")
    return [Choice(context, (f" {word}",))]

  def score(self, item: Item, answers: Sequence[Any]) -> Score:
    """`acc`, whether greedy decoding writes it, and `log_likelihood` in nats."""
    ((nats, is_greedy),) = answers[0]
    return {"acc": float(is_greedy), "log_likelihood": float(nats)}

  def statistics(self, scores: Sequence[Score]) -> dict[str, Statistic]:
    """The mean of `acc`, and `perplexity` of the words."""
    nats = statistics.of_means([s["log_likelihood"] for s in scores])
    return {
      "acc": statistics.of_means([s["acc"] for s in scores]),
      "perplexity": dataclasses.replace(nats, finish=_perplexity),
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

  def check(self, row: Row) -> None:
    """Raises ValueError where a row lacks its text, or the text is empty."""
    super().check(row)
    check_texts(row, "text")

  def statistics(self, scores: Sequence[Score]) -> dict[str, Statistic]:
    """`bits_per_byte` of all documents together."""
    return {"bits_per_byte": per_byte(scores, "bits")}


def per_byte(scores: Sequence[Score], name: str) -> Statistic:
  """A number of documents over their `bytes`."""
  columns = np.array([[score[name], score["bytes"]] for score in scores])
  return Statistic(columns, lambda sums, _: float(sums[0] / sums[1]))


def _perplexity(sums: np.ndarray, count: int) -> float:
  nats = -float(sums[0]) / count
  return math.exp(nats) if nats < _MOST_NATS else math.inf


DOCUMENTS = BitsPerByte(
  "bpb", "bpb", ("text",), metric="bits_per_byte", groups=("lang", "source", "domain")
)
TASKS = Lambada("lambada", "lambada_test", ("text",)), DOCUMENTS
