"""Programs that a model wrote, run against tests: HumanEval and MBPP."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from blt_jax.evals.sandbox import run_program as run_program
from blt_jax.evals.task import Continue, Item, Request, Row, Score, Task


@dataclasses.dataclass(frozen=True)
class CodeTask(Task):
  """A task whose answers are run.

  Attributes:
    run_code: the user's leave to do so.
  """

  run_code: bool = False

  def program(self, item: Item, answer: str) -> tuple[str, str]:
    """A whole program, and its tests."""
    raise NotImplementedError

  def score(self, item: Item, answers: Sequence[Any]) -> Score:
    """`pass@1`; see `check_ready`."""
    self.check_ready()
    return {"pass@1": float(run_program(*self.program(item, answers[0])) == "passed")}

  def check_ready(self) -> None:
    """Raises ValueError where nobody gave leave to run programs."""
    if not self.run_code:
      raise ValueError(
        f"{self.name} runs programs that a model wrote, which nobody has read: give --run_code "
        "(run_code=True) if this machine may."
      )


class HumanEval(CodeTask):
  """The body of a function, from its head and docstring."""

  def requests(self, item: Item) -> list[Request]:
    """The rest of the function."""
    stop = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
    return [Continue(item.row["prompt"], stop, 1536)]

  def program(self, item: Item, answer: str) -> tuple[str, str]:
    """The function, and the row's tests of it."""
    row = item.row
    return row["prompt"] + answer, f"{row['test']}\ncheck({row['entry_point']})"


class Mbpp(CodeTask):
  """A function, from a sentence and three tests."""

  def requests(self, item: Item) -> list[Request]:
    """The function, after examples."""
    shots = [f"{_prompt(shot)}{shot['code']}\n[DONE]\n\n" for shot in item.shots]
    return [Continue("".join(shots) + _prompt(item.row), ("[DONE]",), 1024)]

  def select(self, rows: Sequence[Row]) -> Sequence[Row]:
    """The test half of all 974, by their numbers; the others are examples and training."""
    return [row for row in rows if not _is_number(row) or 11 <= row.get("task_id", 11) <= 510]

  def check(self, row: Row) -> None:
    """Raises ValueError where a row lacks a field, or its number is none."""
    super().check(row)
    if not _is_number(row):
      raise ValueError(f"has task_id {row['task_id']!r}; it must be a whole number.")

  def program(self, item: Item, answer: str) -> tuple[str, str]:
    """What was written, and the row's tests."""
    row = item.row
    return f"{row.get('test_setup_code', '')}\n{answer}", "\n".join(row["test_list"])


def _is_number(row: Row) -> bool:
  return isinstance(row.get("task_id", 11), int)


def _prompt(row: Row) -> str:
  tests = "\n".join(row["test_list"][:3])
  return (
    f"You are an expert Python programmer, and here is your task: {row['text']} Your code "
    f"should pass these tests:\n\n{tests}\n[BEGIN]\n"
  )


TASKS = (
  HumanEval("humaneval", "humaneval", ("prompt", "entry_point", "test"), metric="pass@1"),
  Mbpp("mbpp", "mbpp", ("text", "code", "test_list"), num_shots=3, metric="pass@1"),
)
