"""Ids of frequent n-grams, looked up in tables.

Reference: Meta `data/ngram_processor.py`.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from blt_jax.hashing.key_index import KeyIndex
from blt_jax.hashing.predecessors import Array, check_documents, look_back

TABLE_OFFSET = 4  # ids of frequency tables start here; 0 is "unknown"
_IDS = 260  # that tokens may have in such a table
_MAX_NGRAMS = 2**31 // _IDS  # of a table: a place and an id are one int32


class NgramTable:
  """Ids of the most frequent n-grams.

  Attributes:
    length: n.
    size: number of ids, `TABLE_OFFSET` included: the rows of its embedding table.
    keys: what finds an n-gram on a device; an argument of `ngram_table_ids`.
  """

  def __init__(self, ngrams: np.ndarray):
    """Takes ngrams, int [N, n] ids, most frequent first.

    Raises:
      ValueError: an n-gram stands there twice, there is none, or ids are out of range.
    """
    ngrams = np.asarray(ngrams, np.int64)
    if ngrams.ndim != 2 or not ngrams.size or not 0 <= ngrams.min() <= ngrams.max() < _IDS:
      raise ValueError(
        f"A table takes n-grams of ids below {_IDS}, int [N, n] with N, n >= 1, got shape "
        f"{ngrams.shape}."
      )
    if len(ngrams) > _MAX_NGRAMS:
      raise ValueError(f"A table takes {_MAX_NGRAMS:,} n-grams at most, got {len(ngrams):,}.")
    self.length, self.size = ngrams.shape[1], len(ngrams) + TABLE_OFFSET
    self.keys = _make_keys(ngrams, np.int32, first=3, rest=1)
    self._host_keys = _make_keys(ngrams, np.int64, first=7, rest=4)

  @functools.cached_property
  def _levels(self) -> list[KeyIndex]:
    return [KeyIndex(level) for level in self._host_keys.levels]

  def ids(self, tokens: Array, document_ids: Array | None = None) -> Array:
    """Looks up the n-gram that ends at each byte.

    Args:
      tokens: int [B, S] ids below 260; of jax, too.
      document_ids: int [B, S] or None; see `ngram_hash_ids`.

    Returns:
      int32 [B, S], 0 where unknown.

    Raises:
      ValueError: documents do not have the shape of tokens.
    """
    if isinstance(tokens, jax.Array):
      return ngram_table_ids(self.keys, tokens, document_ids)
    finders = [level.find for level in self._levels]
    return _look_up(np, self._host_keys, finders, np.asarray(tokens), document_ids)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NgramKeys:
  """The n-grams of a table as a trie: each level adds a few ids to what the last one found.

  Attributes:
    levels: int [K] each, ascending: the place found on the level before, then ids, as the
      digits of one number.
    ids: int32 [N], of what the last level holds.
    widths: ids that each level adds, n in all.
  """

  levels: tuple[Array, ...]
  ids: Array
  widths: tuple[int, ...] = dataclasses.field(metadata={"static": True})


def _make_keys(ngrams: np.ndarray, dtype: Any, first: int, rest: int) -> NgramKeys:
  """Keys of ngrams [N, n]: numbers of `first` ids, then of `rest`, have to fit `dtype`."""
  length = ngrams.shape[1]
  edges = [0, *range(min(first, length), length, rest), length]
  place, levels = np.zeros(len(ngrams), np.int64), []
  for start, end in itertools.pairwise(edges):
    for column in ngrams.T[start:end]:
      place = place * _IDS + column
    level, place = np.unique(place, return_inverse=True)
    levels.append(level.astype(dtype))
  ids = np.zeros(len(levels[-1]), np.int32)
  ids[place] = np.arange(len(ngrams)) + TABLE_OFFSET
  if len(ids) < len(ngrams):
    raise ValueError(f"{len(ngrams) - len(ids)} of {len(ngrams)} n-grams of a table repeat.")
  return NgramKeys(tuple(levels), ids, tuple(np.diff(edges).tolist()))


def ngram_table_ids(
  keys: NgramKeys, tokens: jax.Array, document_ids: jax.Array | None = None
) -> jax.Array:
  """Looks up the n-gram that ends at each byte: int32 [B, S], 0 where unknown.

  Args:
    keys: of a table, where tokens are.
    tokens: int [B, S] ids below 260.
    document_ids: int [B, S] or None; see `ngram_hash_ids`.

  Raises:
    ValueError: documents do not have the shape of tokens.
  """
  finders = [functools.partial(_search, jnp.asarray(level)) for level in keys.levels]
  return _look_up(jnp, keys, finders, tokens, document_ids)


def _search(level: jax.Array, keys: jax.Array) -> jax.Array:
  """Where keys [B, S] stand in a level [K], ascending; -1 for those that do not."""
  found = jnp.minimum(jnp.searchsorted(level, keys), len(level) - 1).astype(keys.dtype)
  return jnp.where(level[found] == keys, found, -1)


def _look_up(
  xp: Any,
  keys: NgramKeys,
  finders: Sequence[Callable[[Array], Array]],
  tokens: Array,
  document_ids: Array | None,
) -> Array:
  """As `ngram_table_ids`, with what finds the keys of each level."""
  check_documents(tokens, document_ids)
  distance = sum(keys.widths)
  place = xp.zeros(tokens.shape, keys.levels[0].dtype)
  for find, width in zip(finders, keys.widths, strict=True):
    for _ in range(width):
      distance -= 1
      place = place * _IDS + look_back(xp, tokens, distance, document_ids).astype(place.dtype)
    # -1 stays negative with more digits, which are below 260, and no key is.
    place = find(place)
  return xp.where((place >= 0) & (tokens >= 0), xp.asarray(keys.ids)[place], 0).astype(xp.int32)
