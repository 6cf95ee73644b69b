"""Likelihoods of texts, as evaluation harnesses ask for them."""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from blt_jax import tokenizer
from blt_jax.decode import loop
from blt_jax.decode.generator import Prompt, check_sizes, check_texts, encode_prompt
from blt_jax.decode.language_model import LanguageModel

_ROUND = 256  # texts are padded to a multiple of this many bytes


class LogLikelihood(NamedTuple):
  """Of a continuation: nats, the sum over its ids, and whether greedy would write it."""

  log_prob: float
  is_greedy: bool


class Scorer:
  """Gives likelihoods of texts under a model, several at a time.

  A text is read from its start, whatever its length, in one pass.
  """

  def __init__(self, model: LanguageModel, *, batch_size: int = 8, chunk: int = 256):
    """Takes the model, texts per batch, and bytes of each that are read at once.

    Raises:
      ValueError: a size is less than 1.
    """
    check_sizes(batch_size=(batch_size, 1), chunk=(chunk, 1))
    self._model = model
    self._batch_size = batch_size
    self._chunk = chunk

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
    texts, starts = [], []
    for number, pair in enumerate(pairs):
      ids, start = self._join(*_check_pair(number, pair))
      texts.append(ids)
      starts.append(start)
    return [
      LogLikelihood(float(log_probs[start:].sum(dtype=np.float64)), bool(is_best[start:].all()))
      for start, (log_probs, is_best) in zip(starts, self._score(texts), strict=True)
    ]

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
    scores = self._score([encode_prompt(text, self._model.pieces) for text in texts])
    return [float(log_probs.sum(dtype=np.float64)) for log_probs, _ in scores]

  def _score(self, texts: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """For ids [n] each: log-probabilities [n], 0 for the first, and whether greedy."""
    scores: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for batch in self._batches(texts):
      length = -(-max(len(texts[i]) for i in batch) // _ROUND) * _ROUND
      tokens = np.zeros((self._batch_size, length), np.int32)
      lengths = np.ones(self._batch_size, np.int32)
      for row, index in enumerate(batch):
        lengths[row] = len(texts[index])
        tokens[row, : lengths[row]] = texts[index]
      log_probs, is_best, is_full = jax.device_get(
        _score(self._model.reader, self._model.weights, tokens, lengths, self._chunk)
      )
      for row, index in enumerate(batch):
        if is_full[row]:
          raise ValueError(f"Text {index} needs more patches than max_patches; raise it.")
        scores[index] = log_probs[row, : lengths[row]], is_best[row, : lengths[row]]
    return [scores[i] for i in range(len(texts))]

  def _batches(self, texts) -> Iterator[list[int]]:
    """Numbers of texts, those of similar length together."""
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    for start in range(0, len(order), self._batch_size):
      yield order[start : start + self._batch_size]


def _check_pair(number, pair):
  if not isinstance(pair, Sequence) or len(pair) != 2 or not isinstance(pair[1], str | bytes):
    raise ValueError(f"Pair {number} is {pair!r}; it must be (context, continuation), texts.")
  if not pair[1] or (isinstance(pair[1], str) and not tokenizer.is_text(pair[1])):
    flaw = "an empty continuation" if not pair[1] else "a lone surrogate"
    raise ValueError(f"Pair {number} has {flaw}; there is nothing to score.")
  return pair


@functools.partial(jax.jit, static_argnums=(0, 4))
def _score(reader, weights, tokens, lengths, chunk):
  cache, _, log_probs, is_best = loop.prefill(reader, weights, tokens, lengths, chunk)
  return log_probs, is_best, reader.patches_left(cache) < 0
