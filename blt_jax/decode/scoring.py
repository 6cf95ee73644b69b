"""Likelihoods of texts, as evaluation harnesses ask for them."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from blt_jax import tokenizer
from blt_jax.decode.generator import Prompt, check_sizes, check_texts, encode_prompt
from blt_jax.decode.language_model import LanguageModel
from blt_jax.decode.room import rows_that_fit
from blt_jax.decode.shared_start import StartReader, pad, read_after

_COPIES = 2.5  # of caches: what contexts leave, what continuations do, and on the way
_LEAST = 1024  # rows have this many slots times a power of two: few programs are compiled


class LogLikelihood(NamedTuple):
  """Of a continuation: nats, the sum over its ids, and whether greedy would write it."""

  log_prob: float
  is_greedy: bool


class _Rest(NamedTuple):
  """Of a text, by its number, the ids int32 [n] that are its own; scored from `start` on."""

  number: int
  ids: np.ndarray
  start: int


class _Group(NamedTuple):
  """Texts that begin with the same ids int32 [n], and the rest of each."""

  shared: np.ndarray
  rests: list[_Rest]

  @property
  def length(self) -> int:
    """Of the longest text."""
    return len(self.shared) + max(len(rest.ids) for rest in self.rests)


class Scorer:
  """Gives likelihoods of texts under a model, several at a time.

  A text is read from its start, whatever its length, in one pass; what several continuations
  have before them is read once, and so is what all contexts of a batch begin with.
  """

  def __init__(self, model: LanguageModel, *, batch_size: int = 8, chunk: int = 64):
    """Takes the model, texts per batch, and ids of each that are read at once.

    Long texts are fewer at a time where the devices' memory does not hold so many.

    Raises:
      ValueError: a size is less than 1.
    """
    check_sizes(batch_size=(batch_size, 1), chunk=(chunk, 1))
    self._model = model
    self._batch_size = batch_size
    self._chunk = chunk
    self._starts = StartReader(model, chunk, is_spread=True)
    self._rows: dict[int, int] = {}  # by the slots of each

  def loglikelihood(self, pairs: Sequence[tuple[Prompt, str | bytes]]) -> list[LogLikelihood]:
    """Scores continuations.

    Where ids are pieces, a text and its continuation are read in the pieces of both together,
    and what is scored begins with the first piece that the text alone does not have.

    Args:
      pairs: of a context, with "" for none, and its continuation.

    Raises:
      ValueError: pairs are no list, or a continuation is empty.
    """
    check_texts("pairs", pairs)
    groups: dict[Any, list[_Rest]] = {}
    for number, pair in enumerate(pairs):
      context, continuation = _check_pair(number, pair)
      key = context if isinstance(context, str | bytes) else tuple(np.asarray(context).flat)
      whole = _Rest(number, *self._join(context, continuation))
      groups.setdefault((type(key), key), []).append(whole)
    scores = dict(self._score([_share(texts) for texts in groups.values()]))
    return [scores[number] for number in range(len(pairs))]

  def _join(self, context: Prompt, continuation: str | bytes) -> tuple[np.ndarray, int]:
    """Ids int32 [n] of both, and the number of the first that is scored."""
    pieces = self._model.pieces
    before = encode_prompt(context, pieces)
    raw = continuation.encode() if isinstance(continuation, str) else continuation
    if pieces is None:
      new = tokenizer.encode(raw, add_bos=False, add_eos=False)
      return np.concatenate([before, new]), len(before)
    if not isinstance(context, str | bytes):
      return np.concatenate([before, pieces.encode(raw)]), len(before)
    text = context.encode() if isinstance(context, str) else context
    both = encode_prompt(text + raw, pieces)
    overlap = min(len(before), len(both))
    return both, int(np.cumprod(before[:overlap] == both[:overlap]).sum())

  def loglikelihood_rolling(self, texts: Sequence[str | bytes]) -> list[float]:
    """Log-likelihood in nats of whole texts, from a BOS on, the end not included.

    Raises:
      ValueError: texts are no list.
    """
    check_texts("texts", texts)
    ids = [encode_prompt(text, self._model.pieces) for text in texts]
    rests = [_Rest(number, x[1:], 0) for number, x in enumerate(ids) if len(x) > 1]
    scores = dict(self._score([_Group(ids[0][:1], rests)] if rests else []))
    return [scores[n].log_prob if n in scores else 0.0 for n in range(len(texts))]

  def _score(self, groups: Iterable[_Group]) -> Iterator[tuple[int, LogLikelihood]]:
    """Numbers of texts and what was found, the longest groups first."""
    left = sorted(groups, key=lambda group: -group.length)
    while left:
      slots = _up(left[0].length)
      size = self._num_rows(slots)
      yield from self._score_batch(left[:size], size, slots)  # its memory is free after it
      left = left[size:]

  def _num_rows(self, slots: int) -> int:
    if slots not in self._rows:
      rows = rows_that_fit(self._model, self._batch_size, slots, copies=_COPIES)
      self._rows[slots] = rows
    return self._rows[slots]

  def _score_batch(
    self, batch: Sequence[_Group], size: int, slots: int
  ) -> Iterator[tuple[int, LogLikelihood]]:
    cache, logits = self._starts.read([group.shared for group in batch], size, slots)
    rests = [(row, rest) for row, group in enumerate(batch) for rest in group.rests]
    rests.sort(key=lambda x: -len(x[1].ids))
    for part in divide(rests, size):
      yield from self._score_rests(part, size, slots, cache, logits)

  def _score_rests(
    self,
    rests: Sequence[tuple[int, _Rest]],
    size: int,
    slots: int,
    cache: Any,
    logits: jax.Array,
  ) -> Iterator[tuple[int, LogLikelihood]]:
    """Of (row of the cache, rest): what follows the ids which that row has read."""
    tokens, lengths = pad([rest.ids for _, rest in rests], size, slots)
    count = np.maximum(lengths - 1, 0)
    rows = np.zeros(size, np.int32)
    rows[: len(rests)] = [row for row, _ in rests]
    reader, weights = self._model.reader, self._model.weights
    found = read_after(reader, weights, cache, logits, rows, tokens, count, self._chunk)[2:]
    for (_, rest), log_probs, is_best, is_full in zip(rests, *jax.device_get(found)):  # noqa: B905
      if is_full:
        raise ValueError(f"Text {rest.number} needs more patches than max_patches; raise it.")
      new = slice(rest.start, len(rest.ids))
      total = float(log_probs[new].sum(dtype=np.float64))
      yield rest.number, LogLikelihood(total, bool(is_best[new].all()))


def _share(texts: list[_Rest]) -> _Group:
  """Takes off the ids that whole texts with the same context all begin with."""
  shared = min(text.start for text in texts)
  rests = [_Rest(t.number, t.ids[shared:], t.start - shared) for t in texts]
  return _Group(texts[0].ids[:shared], rests)


def divide(values: list[Any], size: int) -> Iterator[list[Any]]:
  """Parts of a list, `size` values each, the last one maybe fewer."""
  for start in range(0, len(values), size):
    yield values[start : start + size]


def _up(number: int) -> int:
  """The next power of two times `_LEAST`."""
  return _LEAST << (-(-number // _LEAST) - 1).bit_length()


def _check_pair(number: int, pair: Any) -> Any:
  if not isinstance(pair, Sequence) or len(pair) != 2 or not isinstance(pair[1], str | bytes):
    raise ValueError(f"Pair {number} is {pair!r}; it must be (context, continuation), texts.")
  if not pair[1] or (isinstance(pair[1], str) and not tokenizer.is_text(pair[1])):
    flaw = "an empty continuation" if not pair[1] else "a lone surrogate"
    raise ValueError(f"Pair {number} has {flaw}; there is nothing to score.")
  return pair
