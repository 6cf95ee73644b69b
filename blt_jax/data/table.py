"""Entropies of documents from a table of byte n-grams.

The context of a prediction is the last n bytes. For each n a table holds the entropies of
the contexts that were seen often enough to be trusted; the longest one that a table knows
counts. No context reaches back across the start of the document, nor, where the table was
trained so, across a newline.

A table has 2**b entries, uint32: 16 bits that tell the context from others that hash to
the same entry, and 16 bits of entropy. Arithmetic is 32-bit, which accelerators have.
"""

import json
import os
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from blt_jax import tokenizer

Array = Any  # np.ndarray or jax.Array

VERSION = 1
MAX_ORDER = 7  # context and next byte fit in 64 bits
INFO = "table.json"
_ENTRIES = "entries.npy"
_NEWLINE_ID = ord("\n") + tokenizer.OFFSET
_STEP = 2.0**-13  # nats per unit of an entry's lower half; ln 256 is 5.55
_INDEX_FACTORS = np.uint32(0x9E3779B1), np.uint32(0x85EBCA77)  # large odd numbers
_CHECK_FACTORS = np.uint32(0xC2B2AE3D), np.uint32(0x27D4EB2F)


class TableModel:
  """Gives the entropy after each byte of a document; see `transforms.Scorer`.

  Its arrays are mapped from files, so worker processes share them; pickling sends the path.

  Attributes:
    info: what `table.json` holds, `reset_at_newline` among it.
  """

  def __init__(self, folder: str | os.PathLike):
    """Opens a folder that `save_table` wrote.

    Raises:
      FileNotFoundError: there is no table.
      ValueError: the table is of another version, or its files do not fit together.
    """
    self._folder = pathlib.Path(folder)
    self.info = _load_info(self._folder)
    entries = _load_entries(self._folder / _ENTRIES, sum(self.info["buckets"]))
    ends = np.cumsum(self.info["buckets"])
    self._tables = dict(zip(self.info["orders"], np.split(entries, ends[:-1]), strict=True))

  def __reduce__(self):
    return TableModel, (self._folder,)

  def __call__(self, tokens: np.ndarray) -> np.ndarray:
    """Entropies in nats, float32 [n], of the predictions made at ids [n]."""
    return self.look_up(tokens)[0]

  def look_up(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Entropies as `__call__` gives them, and the bytes of context used, int8 [n]."""
    window = context_windows((tokens - tokenizer.OFFSET).astype(np.uint8))
    newest, older = window.astype(np.uint32), (window >> np.uint64(32)).astype(np.uint32)
    room = context_lengths(tokens, self.info["reset_at_newline"])
    entropies = np.full(len(tokens), self.info["entropy"], np.float32)
    used = np.zeros(len(tokens), np.int8)
    open_ids = np.arange(len(tokens))
    for order, table in reversed(self._tables.items()):
      index, check = hash_contexts(newest, older, order, len(table))
      entry = table[index.astype(np.intp)]
      known = (entry >> 16 == check) & (room >= order)
      found = open_ids[known]
      entropies[found] = (entry[known] & 0xFFFF) * np.float32(_STEP)
      used[found] = order
      unknown = ~known
      open_ids, newest, older, room = (a[unknown] for a in (open_ids, newest, older, room))
    return entropies, used

  def jax_scorer(self) -> Callable[[jax.Array], jax.Array]:
    """The same for jax arrays: a function of ids [B, S] to entropies float32 [B, S].

    It may run under `jit`; a decoding loop needs the last `MAX_ORDER` ids only, if none
    of the contexts that they cut off is wanted. The tables go to the default device.
    """
    tables = {order: jnp.asarray(table) for order, table in self._tables.items()}

    def score(tokens: jax.Array) -> jax.Array:
      raw = (tokens - tokenizer.OFFSET).astype(jnp.uint32) & 0xFF
      shifted = [
        jnp.pad(raw, ((0, 0), (i, 0)))[:, : raw.shape[1]] << 8 * (i % 4) for i in range(8)
      ]
      newest, older = sum(shifted[:4]), sum(shifted[4:])
      room = context_lengths(tokens, self.info["reset_at_newline"])
      entropies = jnp.full(tokens.shape, self.info["entropy"], jnp.float32)
      for order, table in tables.items():
        index, check = hash_contexts(newest, older, order, len(table))
        entry = table[index]
        known = (entry >> 16 == check) & (room >= order)
        entropies = jnp.where(known, (entry & 0xFFFF) * jnp.float32(_STEP), entropies)
      return entropies

    return score


def context_windows(raw: np.ndarray) -> np.ndarray:
  """The eight bytes that end at each byte, the newest lowest: uint64 [n] of uint8 [n]."""
  padded = np.concatenate([np.zeros(7, np.uint8), raw])
  return np.ndarray(len(raw), ">u8", padded, strides=(1,)).astype(np.uint64)


def context_lengths(tokens: Array, reset_at_newline: bool) -> Array:
  """How many bytes the context at each id has, the id itself included.

  Args:
    tokens: int [..., n] ids.
    reset_at_newline: contexts begin anew after each newline, which ends the old one.

  Returns:
    int [..., n]; 0 at special ids, after which contexts begin anew.
  """
  xp = jnp if isinstance(tokens, jax.Array) else np
  position = xp.arange(tokens.shape[-1], dtype=np.int32)
  is_special = tokens < tokenizer.OFFSET
  ends = is_special | (tokens == _NEWLINE_ID) if reset_at_newline else is_special
  last_end = xp.maximum.accumulate(xp.where(ends, position, -1), axis=-1)
  before = xp.concatenate([xp.full_like(last_end[..., :1], -1), last_end[..., :-1]], axis=-1)
  return xp.where(is_special, 0, position - before)


def hash_contexts(newest: Array, older: Array, order: int, buckets: int) -> tuple[Array, Array]:
  """Hashes contexts of `order` bytes.

  Args:
    newest: uint32 [n], the last four bytes, the newest lowest.
    older: uint32 [n], the four before them.
    order: bytes of the context; the others are ignored.
    buckets: entries of the table, a power of two.

  Returns:
    uint32 [n] places in the table, and [n] odd numbers below 2**16 to check entries by,
    so that an empty entry, 0, belongs to no context.
  """
  newest = newest & np.uint32((1 << 8 * min(order, 4)) - 1)
  older = older & np.uint32((1 << 8 * max(order - 4, 0)) - 1)
  index = newest * _INDEX_FACTORS[0] + older * _INDEX_FACTORS[1]
  check = newest * _CHECK_FACTORS[0] + older * _CHECK_FACTORS[1]
  return index >> np.uint32(33 - buckets.bit_length()), check >> np.uint32(16) | np.uint32(1)


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
  newest, older = contexts.astype(np.uint32), (contexts >> np.uint64(32)).astype(np.uint32)
  index, check = hash_contexts(newest, older, order, buckets)
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
  """
  folder = pathlib.Path(folder)
  partial = folder.with_name(folder.name + ".partial")
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  np.save(partial / _ENTRIES, np.concatenate(tables))
  info = {"version": VERSION, "buckets": [len(t) for t in tables], **info}
  (partial / INFO).write_text(json.dumps(info, indent=2) + "\n")
  partial.rename(folder)


def _load_info(folder: pathlib.Path) -> dict[str, Any]:
  path = folder / INFO
  if not path.exists():
    raise FileNotFoundError(
      f"{folder} holds no table model (no {INFO}); make one with "
      "`python -m blt_jax.train_table`."
    )
  info = json.loads(path.read_text())
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
