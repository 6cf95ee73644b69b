"""Entropies of documents from a table of byte n-grams.

The context of a prediction is the last n bytes. For each n a table holds the entropies of
the contexts that were seen often enough to be trusted; the longest one that a table knows
counts. No context reaches back across the start of the document, nor, where the table was
trained so, across a newline.

A table has 2**b entries, uint32: 16 bits that tell the context from others that hash to
the same entry, and 16 bits of entropy.
"""

import json
import os
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from blt_jax import tokenizer
from blt_jax.entropy.contexts import (
  ContextHash,
  context_lengths,
  context_windows,
  split_windows,
)
from blt_jax.storage import atomic

Array = Any  # np.ndarray or jax.Array

VERSION = 1
INFO = "table.json"
_ENTRIES = "entries.npy"
_STEP = 2.0**-13  # nats per unit of an entry's lower half; ln 256 is 5.55


class TableModel:
  """Gives the entropy after each byte of a document; see `transforms.Scorer`.

  Its arrays are mapped from files, so worker processes share them; pickling sends the path.

  Attributes:
    info: what `table.json` holds: what the table was made from, and its sizes.
    reset_at_newline: contexts begin anew after each newline.
  """

  def __init__(self, folder: str | os.PathLike):
    """Opens a folder that `save_table` wrote.

    Raises:
      FileNotFoundError: there is no table.
      ValueError: the table is of another version, or its files do not fit together.
    """
    self._folder = pathlib.Path(folder).absolute()
    self.info = _load_info(self._folder)
    self.reset_at_newline: bool = self.info["reset_at_newline"]
    entries = _load_entries(self._folder / _ENTRIES, sum(self.info["buckets"]))
    ends = np.cumsum(self.info["buckets"])
    tables = np.split(entries, ends[:-1])
    self._tables = [
      (order, ContextHash(order, len(table)), table)
      for order, table in zip(self.info["orders"], tables, strict=True)
    ]

  def __reduce__(self):
    return TableModel, (self._folder,)

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
  """Writes a table aside, then gives the folder its name.

  Args:
    folder: of the table; it must not exist.
    tables: entries of each order, as from `make_entries`.
    info: `orders` (bytes of context, ascending), `entropy` (nats, without context),
      `reset_at_newline`, and whatever says what the table was made from.

  Raises:
    OSError: it cannot be written.
  """
  folder = pathlib.Path(folder)
  partial = folder.with_name(folder.name + ".partial")
  shutil.rmtree(partial, ignore_errors=True)
  info = {"version": VERSION, "buckets": [len(t) for t in tables], **info}
  try:
    partial.mkdir(parents=True)
    np.save(partial / _ENTRIES, np.concatenate(tables))
    (partial / INFO).write_text(json.dumps(info, indent=2) + "\n")
    partial.rename(folder)
  except OSError as error:
    shutil.rmtree(partial, ignore_errors=True)
    raise OSError(
      f"{folder} cannot be written: {error}. Check free space and permissions."
    ) from error


def is_table(folder: str | os.PathLike) -> bool:
  """Whether a folder holds a table."""
  return (pathlib.Path(folder) / INFO).exists()


def _load_info(folder: pathlib.Path) -> dict[str, Any]:
  path = folder / INFO
  if not path.exists():
    raise FileNotFoundError(
      f"{folder} holds no table model (no {INFO}); make one with "
      "`python -m blt_jax.train_table`."
    )
  info = atomic.parse_json(path.read_bytes(), path)
  if info.get("version") != VERSION:
    raise ValueError(
      f"{path} has version {info.get('version')}, this code reads {VERSION}; train it anew."
    )
  return info


def _load_entries(path: pathlib.Path, size: int) -> np.ndarray:
  try:
    entries = np.load(path, mmap_mode="r")
  except (OSError, ValueError, EOFError) as error:
    raise ValueError(f"{path} is missing or cut short ({error}); train it anew.") from error
  if entries.shape != (size,) or entries.dtype != np.uint32:
    raise ValueError(
      f"{path} has {entries.dtype} {entries.shape}, {INFO} beside it says uint32 ({size},); "
      "train it anew."
    )
  return np.asarray(entries)
