"""Translation, scored by corpus BLEU and chrF++ of sacrebleu."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from blt_jax.evals import languages
from blt_jax.evals.statistics import Statistic
from blt_jax.evals.task import Continue, Item, Request, Row, Score, Task, check_texts

_BYTES = 4  # of a translation, for each byte of the reference


class Pair(NamedTuple):
  """A text, its translation, and the English names of both languages."""

  source: str
  target: str
  source_language: str
  target_language: str


@dataclasses.dataclass(frozen=True)
class Translation(Task):
  """Rows of `source` and `target`, with `source_language` and `target_language`."""

  def pair(self, row: Row) -> Pair:
    """The texts of a row, and their languages."""
    names = [languages.name_of(row[f"{side}_language"]) for side in ("source", "target")]
    return Pair(row["source"], row["target"], *names)

  def check(self, row: Row) -> None:
    """Raises ValueError where a row lacks a field, or a field its text."""
    super().check(row)
    check_texts(row, *self.fields)
    self.pair(row)

  def check_ready(self) -> None:
    """Raises ImportError where sacrebleu is missing."""
    _metrics("13a")

  def shots_of(self, row: Row, shots: Sequence[Row]) -> tuple[Row, ...]:
    """The first of the row's languages."""
    wanted = self.pair(row)[2:]
    return tuple(s for s in shots if self.pair(s)[2:] == wanted)[: self.num_shots]

  def requests(self, item: Item) -> list[Request]:
    """The translation, after examples."""
    pairs = [self.pair(shot) for shot in item.shots]
    shots = [f"{_prompt(pair)} {pair.target}\n\n" for pair in pairs]
    pair = self.pair(item.row)
    most = _BYTES * len(pair.target.encode())
    return [Continue("".join(shots) + _prompt(pair), ("\n",), most)]

  def score(self, item: Item, answers: Sequence[Any]) -> Score:
    """What the scores of all rows are made from: counts of sacrebleu, `bleu.0`, `bleu.1` ..."""
    pair = self.pair(item.row)
    counts: Score = {}
    for name, metric in _metrics(languages.tokenizer_of(pair.target_language)).items():
      (found,) = metric._extract_corpus_statistics([answers[0].strip()], [[pair.target]])
      counts |= {f"{name}.{i}": float(count) for i, count in enumerate(found)}
    return counts

  def statistics(self, scores: Sequence[Score]) -> dict[str, Statistic]:
    """`bleu` and `chrf++`, from 0 to 100."""
    return {
      name: Statistic(
        np.array([[s[key] for key in s if key.startswith(f"{name}.")] for s in scores]),
        functools.partial(_score_counts, metric),
      )
      for name, metric in _metrics("13a").items()
    }

  def signatures(self, items: Sequence[Item]) -> dict[str, str]:
    """Those of sacrebleu, of every tokenizer that was used."""
    used = {languages.tokenizer_of(self.pair(item.row).target_language) for item in items}
    by_tokenizer = [_metrics(name) for name in sorted(used)]
    return {
      name: ", ".join(dict.fromkeys(_sign(metrics[name]) for metrics in by_tokenizer))
      for name in by_tokenizer[0]
    }


@dataclasses.dataclass(frozen=True)
class WithEnglish(Translation):
  """Rows of English `en`, its translation `xx` and the language of that, `lang`.

  Attributes:
    from_english: whether to translate `en`; else `xx`.
  """

  from_english: bool = False

  def pair(self, row: Row) -> Pair:
    """The texts of a row, and their languages."""
    name = languages.name_of(row["lang"])
    if self.from_english:
      return Pair(row["en"], row["xx"], "English", name)
    return Pair(row["xx"], row["en"], name, "English")


def _prompt(pair: Pair) -> str:
  return f"{pair.source_language} phrase: {pair.source}\n{pair.target_language} phrase:"


@functools.cache
def _metrics(tokenizer: str) -> dict[str, Any]:
  """Metrics of sacrebleu, for texts of which its tokenizer is given."""
  try:
    from sacrebleu.metrics import BLEU, CHRF
  except ImportError as error:
    raise ImportError("Translation needs sacrebleu: pip install 'blt_jax[eval]'") from error
  return {"bleu": BLEU(tokenize=tokenizer), "chrf++": CHRF(word_order=2)}


def _score_counts(metric: Any, sums: np.ndarray, count: int) -> float:
  """The score of summed counts; sacrebleu has no public function for it."""
  del count
  return float(metric._compute_score_from_stats(sums.astype(int).tolist()).score)


def _sign(metric: Any) -> str:
  return str(metric.get_signature())


_FIELDS = ("lang", "en", "xx")
FROM_ENGLISH = "_from_english"


def with_english(name: str) -> WithEnglish:
  """The task of a file of rows with `en`, `xx` and `lang`; into English, or from it."""
  file = name.removesuffix(FROM_ENGLISH)
  return WithEnglish(
    name, file, _FIELDS, 4, "bleu", ("lang",), from_english=name.endswith(FROM_ENGLISH)
  )


TASKS = tuple(
  with_english(f"translate_{name}{direction}")
  for name in ("floresv1", "indian", "ntrex", "tatoeba")
  for direction in ("", FROM_ENGLISH)
)
