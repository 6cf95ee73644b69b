"""GSM8K: the number at the end of a worked answer."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from blt_jax.evals.task import Continue, Item, Request, Row, Score, Task, check_texts

_STRICT = re.compile(r"#### (-?[0-9.,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")


@dataclasses.dataclass(frozen=True)
class Gsm8k(Task):
  """Word problems, after others with their answers."""

  def requests(self, item: Item) -> list[Request]:
    """The answer of a question."""
    shots = [f"{_prompt(shot)} {shot['answer']}\n\n" for shot in item.shots]
    return [Continue("".join(shots) + _prompt(item.row), ("Question:", "\n\n"), 1024)]

  def score(self, item: Item, answers: Sequence[Any]) -> Score:
    """The first number after ####, or, flexibly, the last number of all."""
    wanted = _clean(_STRICT.findall(item.row["answer"])[0])
    strict = _STRICT.search(answers[0])
    numbers = [a or b for a, b in _FLEXIBLE.findall(answers[0])]
    return {
      "exact_match": float(strict is not None and _clean(strict[1]) == wanted),
      "exact_match_flexible": float(bool(numbers) and _clean(numbers[-1]) == wanted),
    }

  def check(self, row: Row) -> None:
    """Raises ValueError where a row lacks a field, or its answer ends without a number."""
    super().check(row)
    check_texts(row, "question", "answer")
    if not _STRICT.search(row["answer"]):
      raise ValueError("has an answer without '#### NUMBER'.")


def _prompt(row: Row) -> str:
  return f"Question: {row['question']}\nAnswer:"


def _clean(number: str) -> str:
  return re.sub(r"[,$]", "", number).removesuffix(".")


TASKS = (
  Gsm8k("gsm8k", "gsm8k_test", ("question", "answer"), num_shots=5, metric="exact_match"),
)
