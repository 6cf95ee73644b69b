"""The frequency n-gram tables of a run, which keeps a copy of them in its folder."""

import os

from ml_collections import ConfigDict

from blt_jax.entropy import frequent_ngrams
from blt_jax.hashing import TABLE_OFFSET, NgramTable
from blt_jax.parallel import distributed
from blt_jax.storage.folders import Folder

_COPY = "ngrams"
Tables = dict[int, frequent_ngrams.Frequent]  # by n


def find(config: ConfigDict) -> Tables:
  """The tables of a run that is to be trained: its copy, else `config.data.ngram_tables`.

  Raises:
    FileNotFoundError: there are none where the settings say.
    ValueError: the run began with others, or a file is damaged.
  """
  given = config.data.ngram_tables
  wanted = frequent_ngrams.load(given) if given else {}
  if not _has_copy(config.workdir):
    return wanted
  kept = frequent_ngrams.load(_path(config.workdir))
  if given and not _are_equal(kept, wanted):
    raise ValueError(
      f"The run in {config.workdir} began with other n-gram tables than config.data."
      f"ngram_tables={given!r} holds (n = {[*kept]} and {[*wanted]}); leave that out, or "
      "choose another config.workdir."
    )
  return kept


def keep(config: ConfigDict) -> None:
  """Has process 0 copy the tables into the run's folder."""
  with distributed.failing_together():
    if distributed.is_lead() and not _has_copy(config.workdir) and (tables := find(config)):
      frequent_ngrams.save(_path(config.workdir), tables)


def load(workdir: str | os.PathLike, model: ConfigDict) -> list[NgramTable]:
  """The tables of a trained run; none if its model has none.

  Args:
    workdir: folder of the run.
    model: its `config.model`.

  Raises:
    FileNotFoundError: they are missing.
    ValueError: they are not those of the model.
  """
  if not model.get("ngram_vocab_sizes"):
    return []
  tables = frequent_ngrams.load(_path(workdir))
  check(tables, model, _path(workdir))
  return frequent_ngrams.to_tables(tables.values())


def copy_to(target: str, workdir: str) -> None:
  """Copies the tables of a run, if it has some, into another folder."""
  if _has_copy(workdir):
    frequent_ngrams.save(_path(target), frequent_ngrams.load(_path(workdir)))


def rows_of(tables: Tables) -> dict[int, int]:
  """Rows of the embedding of each table, by n."""
  return {n: len(table.ngrams) + TABLE_OFFSET for n, table in tables.items()}


def check(tables: Tables, model: ConfigDict, path: str) -> None:
  """Raises ValueError where the rows of a model's embeddings are not those of its tables."""
  rows = rows_of(tables)
  if tuple(rows.values()) != tuple(model.ngram_vocab_sizes):
    raise ValueError(
      f"The model has frequency n-gram embeddings of {tuple(model.ngram_vocab_sizes)} rows; "
      f"the tables in {path} want (n: rows) {rows}, {TABLE_OFFSET} ids that are no n-gram "
      "included."
    )


def _path(workdir: str | os.PathLike) -> str:
  return Folder(workdir).path_of(_COPY)


def _has_copy(workdir: str) -> bool:
  return bool(Folder(_path(workdir)).sizes())


def _are_equal(some: Tables, others: Tables) -> bool:
  return some.keys() == others.keys() and all(
    some[n].ngrams.tobytes() == others[n].ngrams.tobytes() for n in some
  )
