"""Entropies of documents from a table of byte n-grams.

The context of a prediction is the last n bytes. For each n a table holds the entropies of
the contexts that were seen often enough to be trusted; the longest one that a table knows
counts. No context reaches back across the start of the document, nor, where the table was
trained so, across a newline.

A table has 2**b entries, uint32: 16 bits that tell the context from others that hash to
the same entry, and 16 bits of entropy.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from blt_jax import patching, tokenizer
from blt_jax.entropy.contexts import (
  MAX_ORDER,
  ContextHash,
  context_lengths,
  context_windows,
  split_windows,
)
from blt_jax.storage import atomic, files
from blt_jax.storage.folders import Folder

Array = Any  # np.ndarray or jax.Array

VERSION = 1
INFO = "table.json"
_ENTRIES = "entries.npy"
_STEP = 2.0**-13  # nats per unit of an entry's lower half; ln 256 is 5.55


class TableModel:
  """Gives the entropy after each byte of a document; see `transforms.Scorer`.

  Its arrays are mapped from a file, so worker processes share them; pickling sends its path.

  Attributes:
    info: what `table.json` holds: what the table was made from, and its sizes.
    reset_at_newline: contexts begin anew after each newline.
  """

  def __init__(self, folder: str | os.PathLike):
    """Opens a folder that `save_table` wrote; of a remote one, a copy of the entries.

    Raises:
      FileNotFoundError: there is no table.
      ValueError: the table is of another version, or its files do not fit together.
    """
    home = Folder(folder)
    self.__setstate__((_load_info(home), _copy_entries(home)))
    _check_digest(home, self.info.get("digest"), _load_entries(*self._entries))

  def __getstate__(self):
    return self.info, self._path

  def __setstate__(self, state):
    self.info, self._path = state
    self.reset_at_newline: bool = self.info["reset_at_newline"]
    self._entries = self._path, sum(self.info["buckets"])
    entries = _load_entries(*self._entries)
    ends = np.cumsum(self.info["buckets"])
    tables = np.split(entries, ends[:-1])
    self._tables = [
      (order, ContextHash(order, len(table)), table)
      for order, table in zip(self.info["orders"], tables, strict=True)
    ]

  def __call__(self, tokens: np.ndarray) -> np.ndarray:
    """Entropies in nats, float32 [n], of the predictions made at ids [n]."""
    return self.look_up(tokens)[0]

  def look_up(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Entropies as `__call__` gives them, and the bytes of context used, int8 [n]."""
    newest, older = split_windows(context_windows(tokens))
    room = context_lengths(tokens, self.reset_at_newline)
    entries, used = np.empty(len(tokens), np.uint32), np.zeros(len(tokens), np.int8)
    left = np.arange(len(tokens))  # ids whose context is unknown so far
    for order, hash_contexts, table in reversed(self._tables):
      index, check = hash_contexts(newest, older)
      entry = table[index.astype(np.intp)]
      entries[left], used[left] = entry, order
      is_left = (entry >> 16 != check) | (room < order)
      unknown = is_left.nonzero()[0]
      left, newest, older, room = left[unknown], newest[unknown], older[unknown], room[unknown]
    entropies = _entropies(entries)
    entropies[left], used[left] = self.info["entropy"], 0
    return entropies, used

  def jax_tables(self) -> list[jax.Array]:
    """The tables on the default device, for `score_jax`."""
    return [jnp.asarray(table) for _, _, table in self._tables]

  def score_jax(self, tables: list[jax.Array], tokens: jax.Array) -> jax.Array:
    """As `__call__`, under `jit`: float32 [B, S] of ids [B, S].

    For the newest entropy alone, the last `MAX_ORDER + 1` ids are enough.
    """
    raw = (tokens - tokenizer.OFFSET).astype(jnp.uint32) & 0xFF
    before = [jnp.pad(raw, ((0, 0), (i, 0)))[:, : raw.shape[1]] for i in range(8)]
    newest, older = (sum(before[i + j] << 8 * j for j in range(4)) for i in (0, 4))
    room = context_lengths(tokens, self.reset_at_newline)
    entropies = jnp.full(tokens.shape, self.info["entropy"], jnp.float32)
    for (order, hash_contexts, _), table in zip(self._tables, tables, strict=True):
      index, check = hash_contexts(newest, older)
      entry = table[index]
      is_known = (entry >> 16 == check) & (room >= order)
      entropies = jnp.where(is_known, _entropies(entry), entropies)
    return entropies


def _entropies(entries: Array) -> Array:
  return (entries & np.uint32(0xFFFF)).astype(np.float32) * np.float32(_STEP)


def make_entries(
  contexts: np.ndarray, order: int, entropies: np.ndarray, counts: np.ndarray, buckets: int
) -> np.ndarray:
  """Makes the table of one order; where contexts collide, the most frequent one stays.

  Args:
    contexts: uint64 [n], as from `context_windows`.
    order: their bytes.
    entropies: [n] nats.
    counts: [n], how often each was seen.
    buckets: entries, a power of two.

  Returns:
    uint32 [buckets].
  """
  by_count = np.argsort(counts, kind="stable")
  contexts = contexts[by_count]
  index, check = ContextHash(order, buckets)(*split_windows(contexts))
  entries = np.zeros(buckets, np.uint32)
  entries[index] = check << 16 | np.rint(entropies[by_count] / _STEP).astype(np.uint32)
  return entries


def save_table(
  folder: str | os.PathLike, tables: Sequence[np.ndarray], info: dict[str, Any]
) -> None:
  """Writes a table; without `table.json`, its last file, a folder is none.

  Args:
    folder: of the table; see `is_free`.
    tables: entries of each order, as from `make_entries`.
    info: `orders` (bytes of context, ascending), `entropy` (nats, without context),
      `reset_at_newline`, and whatever says what the table was made from.

  Raises:
    OSError: it cannot be written.
  """
  home = Folder(folder)
  entries = np.concatenate(tables)
  facts = {"buckets": [len(t) for t in tables], "digest": _digest(entries)}
  info = {"version": VERSION, **facts, **info}
  info["facts_digest"] = _facts_digest(info)
  try:
    with atomic.explaining(folder):
      home.make()
      with home.new_file(_ENTRIES) as path:
        np.save(path, entries)
    home.write_json(INFO, info)
  except OSError:
    home.unmake(_ENTRIES)
    raise


def is_free(folder: str | os.PathLike) -> bool:
  """Whether nothing is there, or no more than a `save_table` that was killed left."""
  return all(name == _ENTRIES or name.startswith(".") for name in Folder(folder).sizes())


def is_table(folder: str | os.PathLike) -> bool:
  """Whether a folder holds a table."""
  return Folder(folder).exists(INFO)


def _load_info(home: Folder) -> dict[str, Any]:
  if not home.exists(INFO):
    raise FileNotFoundError(
      f"{home} holds no table model (no {INFO}); make one with `python -m blt_jax.train_table`."
    )
  info = home.read_json(INFO)
  if info.get("version") != VERSION:
    raise ValueError(
      f"{home.path_of(INFO)} has version {info.get('version')}, this code reads {VERSION}; "
      "train it anew."
    )
  for name, is_right in _INFO.items():
    if name not in info or not is_right(info[name]):
      found = f"has {name} {info[name]!r}" if name in info else f"lacks {name}"
      raise ValueError(f"{home.path_of(INFO)} is damaged: it {found}; train it anew.")
  if len(info["orders"]) != len(info["buckets"]):
    raise ValueError(f"{home.path_of(INFO)} is damaged: not one size an order; train it anew.")
  if info.get("facts_digest") not in (None, _facts_digest(info)):  # earlier ones have none
    names = ", ".join(_INFO)
    raise ValueError(
      f"{home.path_of(INFO)} has other {names} than were written; train it anew."
    )
  return info


def _are_counts(values: Any, low: int, high: int) -> bool:
  is_list = isinstance(values, list) and len(values) > 0
  return is_list and all(type(n) is int and low <= n <= high for n in values)


# What `table.json` must say, and whether a value is right.
_INFO: dict[str, Callable[[Any], bool]] = {
  "orders": lambda n: _are_counts(n, 1, MAX_ORDER) and n == sorted(set(n)),
  "buckets": lambda n: _are_counts(n, 1, 1 << 31) and all(x & (x - 1) == 0 for x in n),
  "entropy": lambda x: patching.is_number(x) and 0 <= x < 8,
  "reset_at_newline": lambda x: isinstance(x, bool),
}


def _digest(entries: np.ndarray) -> str:
  return hashlib.sha256(np.ascontiguousarray(entries).data).hexdigest()[:32]


def _facts_digest(info: dict[str, Any]) -> str:
  """Of all that `table.json` says about the meaning of the entries."""
  facts = json.dumps([info[name] for name in _INFO])
  return hashlib.sha256(facts.encode()).hexdigest()[:32]


def _check_digest(home: Folder, digest: str | None, entries: np.ndarray) -> None:
  """Raises ValueError where entries are not those that were written."""
  if digest is None:
    logging.warning(
      "%s has no digest, since an earlier version made it; its entries are taken as they are.",
      home.path_of(INFO),
    )
  elif digest != _digest(entries):
    raise ValueError(
      f"{home.path_of(_ENTRIES)} is not what was written, by the digest in {INFO}; train it "
      "anew."
    )


def _copy_entries(home: Folder) -> str:
  """The path of the entries on this machine."""
  path = home.path_of(_ENTRIES)
  try:
    return files.copy_here(path)
  except FileNotFoundError as error:
    raise ValueError(f"{path} is missing; train it anew.") from error


def _load_entries(path: str, size: int) -> np.ndarray:
  try:
    entries = np.load(path, mmap_mode="r")
    if not isinstance(entries, np.ndarray):
      raise ValueError("it holds several arrays")
  except (OSError, ValueError, EOFError) as error:
    raise ValueError(f"{path} is missing or cut short ({error}); train it anew.") from error
  if entries.shape != (size,) or entries.dtype != np.uint32:
    raise ValueError(
      f"{path} has {entries.dtype} {entries.shape}, {INFO} beside it says uint32 ({size},); "
      "train it anew."
    )
  return np.asarray(entries)
