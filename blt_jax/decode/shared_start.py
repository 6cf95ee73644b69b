"""Texts that begin alike: what they begin with is read once."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from blt_jax.decode import loop
from blt_jax.decode.language_model import LanguageModel
from blt_jax.decode.reader import Reader
from blt_jax.ops.device import GPU_OPTIONS

_LEAST = 32  # ids; a shorter start is read with each text


class StartReader:
  """Reads texts batch by batch; the start that all of a batch have is read once, and kept.

  Sums are in another order than where a text is read alone: results agree to rounding.
  """

  def __init__(
    self, model: LanguageModel, chunk: int, keep_back: int = 1, is_spread: bool = False
  ):
    """Takes the model, how to read with it, and whether starts are spread first.

    Args:
      model: reads.
      chunk: ids of each text that are read at once.
      keep_back: as of `loop.prefill`.
      is_spread: texts are read after a copy of their start for each, as who calls
        `read_after` with such a cache wants it: one program, and memory for the copies.
    """
    self._reader, self._weights = model.reader, model.weights
    self._chunk, self._keep_back, self._is_spread = chunk, keep_back, is_spread
    self._ids = np.zeros(0, np.int32)  # the start that was read last
    self._kept: tuple[Any, jax.Array] | None = None  # one row that has read it
    self._slots = 0

  def read(self, texts: Sequence[np.ndarray], rows: int, slots: int) -> tuple[Any, jax.Array]:
    """Reads texts from their beginnings.

    Args:
      texts: int32 [n] each.
      rows: of the batch; those beyond the texts read nothing.
      slots: ids that a row has room for.

    Returns:
      The cache of the rows [B], and float32 logits [B, V] of the id after each text.
    """
    start = self._choose(texts, slots)
    before = self._read_start(start, rows, slots)
    return self._read_on(before, [text[len(start) :] for text in texts], rows, slots)

  def _choose(self, texts: Sequence[np.ndarray], slots: int) -> np.ndarray:
    """The start [n] that is not read with each text; n is 0 where that would not pay."""
    common = _common(texts)
    kept = len(self._ids)
    is_of_all = slots == self._slots and _is_same(texts[0][:kept], self._ids) and kept <= common
    if kept and is_of_all and (kept >= common // 2 or len(texts) == 1):
      return self._ids
    if common < _LEAST or len(texts) == 1:
      return texts[0][:0]
    return texts[0][:common]

  def _read_start(self, start: np.ndarray, rows: int, slots: int) -> tuple[Any, jax.Array]:
    """The cache of one row that has read a start, and logits [1, V] of the id after it."""
    if len(start) == 0:
      return begin(self._reader, self._weights, 1, slots, self._keep_back)
    if self._kept is not None and _is_same(start, self._ids) and slots == self._slots:
      return self._kept
    self._kept = None  # its memory is free before the next is made
    nothing = self._read_start(start[:0], rows, slots)
    kept = _take_rows(self._read_on(nothing, [start], rows, slots), np.zeros(1, np.int32))
    self._kept, self._ids, self._slots = kept, start, slots
    return kept

  def _read_on(
    self, before: tuple[Any, jax.Array], texts: Sequence[np.ndarray], rows: int, slots: int
  ) -> tuple[Any, jax.Array]:
    tokens, lengths = pad(texts, rows, slots)
    first = np.zeros(rows, np.int32)
    if self._is_spread:
      before = _take_rows(before, first)
    return read_after(
      self._reader, self._weights, *before, first, tokens, lengths, self._chunk
    )[:2]


def _common(texts: Sequence[np.ndarray]) -> int:
  """Length of the longest start that texts [n] have."""
  count = min(len(text) for text in texts)
  same = [text[:count] == texts[0][:count] for text in texts]
  return int(np.cumprod(np.all(same, axis=0)).sum())


def _is_same(one: np.ndarray, other: np.ndarray) -> bool:
  return len(one) == len(other) and bool((one == other).all())


def pad(texts: Sequence[np.ndarray], rows: int, slots: int) -> tuple[np.ndarray, np.ndarray]:
  """Ids [rows, slots] of texts [n] each, and their lengths [rows], 0 where there is none."""
  tokens, lengths = np.zeros((rows, slots), np.int32), np.zeros(rows, np.int32)
  for row, text in enumerate(texts):
    lengths[row] = len(text)
    tokens[row, : len(text)] = text
  return tokens, lengths


@jax.jit
def _take_rows(arrays: Any, rows: jax.Array) -> Any:
  """Rows [B] of arrays [..., ...], as arrays [B, ...]."""
  return jax.tree.map(lambda x: x[rows], arrays)


@functools.partial(jax.jit, static_argnums=(0, 2, 3, 4), keep_unused=True)
def begin(
  reader: Reader, weights: Any, rows: int, slots: int, keep_back: int = 1
) -> tuple[Any, jax.Array]:
  """The cache of rows [B] that have read nothing and logits [B, V], where the weights are."""
  del weights
  return reader.init(rows, slots, keep_back), jnp.zeros((rows, reader.vocab_size))


@functools.partial(jax.jit, static_argnums=(0, 7), compiler_options=GPU_OPTIONS)
def read_after(
  reader: Reader,
  weights: Any,
  cache: Any,
  logits: jax.Array,
  rows: jax.Array,
  tokens: jax.Array,
  count: jax.Array,
  chunk: int,
) -> tuple[Any, jax.Array, jax.Array, jax.Array, jax.Array]:
  """Reads and scores ids that follow what rows of a cache have read.

  Contexts and continuations are read by the same program, since it compiles for long.

  Args:
    reader: the model.
    weights: of the reader.
    cache: of any number of rows.
    logits: float32 [rows, V], of the id after each.
    rows: int [B], which of them come before the ids.
    tokens: int [B, T].
    count: int [B], how many are read; one more is scored.
    chunk: ids per step.

  Returns:
    The cache after them and float32 logits [B, V] of the id after them; float32 [B, T + 1]
    log-probabilities of the ids; bool [B, T + 1], whether each was the likeliest; and bool
    [B], whether there were more patches than room.
  """
  cache, logits = jax.tree.map(lambda x: jnp.asarray(x)[rows], (cache, logits))
  read = loop.read_on(reader, weights, cache, logits, tokens, count, chunk)
  return *read, reader.patches_left(read[0]) < 0
