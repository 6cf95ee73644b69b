"""From letters to phonemes."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from blt_jax.evals.task import FirstLine, Item, Request, Row, Score, Task, check_texts


def score(output: str, label: str) -> Score:
  """Compares phonemes, such as "K AE1 T"; digits are stress.

  Args:
    output: what a model wrote; its first line that is not blank counts.
    label: the right phonemes.

  Returns:
    `exact_match`, `exact_match_no_stress`, and `phoneme_error_rate`: edits over the number
    of the label's phonemes.
  """
  lines = [line for line in output.split("\n") if line.strip()]
  found, wanted = (lines[0] if lines else "").split(), label.split()
  plain = [[re.sub(r"\d", "", phoneme) for phoneme in side] for side in (found, wanted)]
  return {
    "exact_match": float(found == wanted),
    "exact_match_no_stress": float(plain[0] == plain[1]),
    "phoneme_error_rate": _edits(found, wanted) / max(len(wanted), 1),
  }


def _edits(found: Sequence[str], wanted: Sequence[str]) -> int:
  """Insertions, deletions and replacements that make one the other (Levenshtein)."""
  row = list(range(len(wanted) + 1))
  for i, left in enumerate(found, 1):
    diagonal, row[0] = row[0], i
    for j, right in enumerate(wanted, 1):
      diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
  return row[-1]


@dataclasses.dataclass(frozen=True)
class G2P(Task):
  """Words of a pronouncing dictionary."""

  def requests(self, item: Item) -> list[Request]:
    """The phonemes of a word, after examples."""
    shots = [f"{_prompt(shot)} {shot['phonemes']}\n\n" for shot in item.shots]
    return [FirstLine("".join(shots) + _prompt(item.row), (), 128)]

  def score(self, item: Item, answers: Sequence[Any]) -> Score:
    """See `score`."""
    return score(answers[0], item.row["phonemes"])

  def check(self, row: Row) -> None:
    """Raises ValueError where a row lacks a field, or has no phonemes."""
    super().check(row)
    check_texts(row, "word", "phonemes")


def _prompt(row: Row) -> str:
  return f"Word: {row['word']}\nPhonemes:"


TASKS = (G2P("g2p", "g2p_cmudict", ("word", "phonemes"), num_shots=5, metric="exact_match"),)
