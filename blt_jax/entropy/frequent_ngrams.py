"""The most frequent n-grams of a text: counted in bounded memory, one file for each n.

A file `ngrams_N.npz` holds `ngrams` uint8 [rows, N], the bytes, most frequent first, and
`counts` int64 [rows]. Source: arXiv 2412.09871, appendix on n-gram embeddings.
"""

import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from blt_jax import tokenizer
from blt_jax.entropy import ngram_counts
from blt_jax.hashing import NgramTable
from blt_jax.storage import atomic, files
from blt_jax.storage.folders import Folder
from blt_jax.storage.paths import Path

MAX_LENGTH = 8  # bytes that fit in the 64 bits of a key
_FILE = re.compile(r"ngrams_(\d+)\.npz")


class Frequent(NamedTuple):
  """N-grams of one n.

  Attributes:
    ngrams: uint8 [N, n], most frequent first.
    counts: int64 [N].
  """

  ngrams: np.ndarray
  counts: np.ndarray


class NgramCounter:
  """Counts the n-grams inside documents.

  An n that comes to have more than `max_ngrams` different ones loses its rarest half: what
  comes back later is counted anew, so counts are low by at most `missed`.

  Attributes:
    missed: n -> by how much counts of n-grams may be low.
  """

  def __init__(self, sizes: Sequence[int], max_ngrams: int = 1 << 24):
    """Takes each n, and how many n-grams of each to remember, 16 bytes each.

    Raises:
      ValueError: an n is out of range.
    """
    if not sizes or not all(1 <= n <= MAX_LENGTH for n in sizes):
      raise ValueError(f"n-grams have 1 to {MAX_LENGTH} bytes, got {tuple(sizes)}.")
    self._max = max_ngrams
    self._found = {n: ngram_counts.count_keys(np.zeros(0, np.uint64)) for n in sorted(sizes)}
    self.missed = dict.fromkeys(self._found, 0)

  def add(self, documents: Sequence[bytes]) -> None:
    """Counts the n-grams of documents."""
    windows, room = ngram_counts.predicted_bytes(documents, reset_at_newline=False)
    for n, found in self._found.items():
      keys = ngram_counts.pair_keys(windows[room >= n - 1], n - 1)
      found = ngram_counts.merge(found, ngram_counts.count_keys(keys))[0]
      if len(found.keys) > self._max:
        limit = ngram_counts.largest_rare(found, self._max)
        self.missed[n] += limit
        is_kept = found.counts > limit
        found = ngram_counts.Pairs(found.keys[is_kept], found.counts[is_kept])
      self._found[n] = found

  def most_frequent(self, rows: int) -> dict[int, Frequent]:
    """By n the most frequent ones, `rows` at most; of equal ones the first by their bytes."""
    chosen = {}
    for n, found in self._found.items():
      order = np.lexsort((found.keys, -found.counts))[:rows]
      columns = found.keys[order].astype(">u8").view(np.uint8).reshape(-1, 8)
      chosen[n] = Frequent(columns[:, 8 - n :], found.counts[order])
    return chosen


def save(folder: Path, tables: Mapping[int, Frequent]) -> None:
  """Writes the files into a folder that is new or empty: all of them or, locally, none.

  Raises:
    OSError: they cannot be written.
  """
  with atomic.explaining(folder), atomic.new_folder(folder) as partial:
    for n, table in tables.items():
      with Folder(partial).new_file(f"ngrams_{n}.npz") as path:
        np.savez(path, ngrams=table.ngrams, counts=table.counts)


def load(folder: Path) -> dict[int, Frequent]:
  """What `save` wrote, by n, ascending.

  Raises:
    FileNotFoundError: the folder holds no such file.
    ValueError: a file is damaged, or holds n-grams of another n than it says.
  """
  home = Folder(folder)
  sizes = sorted(int(m[1]) for name in home.sizes() if (m := _FILE.fullmatch(name)))
  if not sizes:
    raise FileNotFoundError(
      f"{folder} holds no n-gram tables (ngrams_N.npz); make some with `python -m "
      "blt_jax.count_ngrams`."
    )
  return {n: _load(home.path_of(f"ngrams_{n}.npz"), n) for n in sizes}


def _load(path: str, n: int) -> Frequent:
  try:
    with np.load(files.copy_here(path), allow_pickle=False) as arrays:
      table = Frequent(arrays["ngrams"], arrays["counts"])
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
    raise ValueError(f"{path} is no n-gram table ({error}); count it anew.") from error
  if table.ngrams.dtype != np.uint8 or table.ngrams.shape != (len(table.counts), n):
    raise ValueError(
      f"{path} holds n-grams of shape {table.ngrams.shape} and {table.ngrams.dtype}; its name "
      f"says bytes of n = {n}, one row for each of {len(table.counts)} counts."
    )
  return table


def to_tables(tables: Iterable[Frequent]) -> list[NgramTable]:
  """Look-up tables over ids."""
  return [NgramTable(table.ngrams.astype(np.int64) + tokenizer.OFFSET) for table in tables]
