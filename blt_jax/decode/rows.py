"""The rows that are continued at a time; each takes the next prompt when it is done."""

import collections
import dataclasses
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from blt_jax import tokenizer
from blt_jax.decode import loop, sampling
from blt_jax.decode.drafting import Drafting
from blt_jax.decode.generation import Generation, Piece, failed
from blt_jax.decode.language_model import LanguageModel
from blt_jax.decode.sampling import Sampling

_FINISH = {
  loop.END: "end", loop.STOP: "stop", loop.LENGTH: "length", loop.PATCHES: "patches",
}  # fmt: skip
_ROUND = 128  # rows have a multiple of this many bytes, so that few programs are compiled


@dataclasses.dataclass(frozen=True)
class Request:
  """A prompt that is as it should be.

  Attributes:
    index: number of the prompt.
    ids: int32 [n], BOS first.
    limit: bytes of the prompt and its continuation at most.
    options: how to continue it.
  """

  index: int
  ids: np.ndarray
  limit: int
  options: Sampling


class Rows:
  """The rows of one call, and the prompts that wait."""

  def __init__(
    self,
    model: LanguageModel,
    drafting: Drafting | None,
    chunk: int,
    requests: Sequence[Request],
    batch_size: int,
  ):
    """Reads the first prompts; the arguments are those of `Generator`."""
    self._model, self._drafting = model, drafting
    self._keep_back = drafting.length if drafting else 1
    capacity = -(-max(r.limit for r in requests) // _ROUND) * _ROUND
    self._capacity, self._chunk = capacity, min(chunk, capacity)
    self._waiting = collections.deque(requests)
    num_rows = min(batch_size, 1 << (len(requests) - 1).bit_length())
    self._stop_shape = _stop_shape(requests)
    self._parts = frozenset().union(*(r.options.parts for r in requests))
    self._rows: list[Request | None] = [None] * num_rows
    for row in range(min(num_rows, len(requests))):
      self._rows[row] = self._waiting.popleft()
    self._sent = [0] * num_rows
    self._state = self._start(self._rows)

  def run(self, stride: int) -> Iterator[Piece]:
    """Continues all prompts, with a look at the results every `stride` passes."""
    while True:
      lengths, finish, text = jax.device_get(
        (self._state.length, self._state.finish, self._state.text)
      )
      for row, request in enumerate(self._rows):
        if request is not None and finish[row] != loop.RUNNING:
          yield self._last_piece(row, request, text[row])
          self._refill(row)
        elif request is not None:
          ids = self._unsent(row, request, text[row], lengths[row])
          if len(ids):
            yield Piece(request.index, ids)
      if not any(self._rows):
        return
      self._state = loop.generate(
        self._model.reader,
        self._model.weights,
        self._state,
        jnp.int32(stride),
        jnp.asarray(bool(self._waiting)),
        self._drafting,
        self._parts,
      )

  def _refill(self, row: int) -> None:
    """Gives a row that is done to the next prompt."""
    self._rows[row] = self._waiting.popleft() if self._waiting else None
    self._sent[row] = 0
    if self._rows[row] is not None:
      new = self._start([self._rows[row]])
      self._state = loop.replace_row(self._state, jnp.int32(row), new)

  def _start(self, requests: Sequence[Request | None]) -> loop.State:
    """Reads prompts; rows without one rest."""
    tokens = np.zeros((len(requests), self._capacity), np.int32)
    ids = [np.array([tokenizer.BOS_ID]) if r is None else r.ids for r in requests]
    for row, prompt in zip(tokens, ids, strict=True):
      row[: len(prompt)] = prompt
    lengths = np.array([len(x) for x in ids], np.int32)
    cache, logits, log_probs, _ = loop.prefill(
      self._model.reader, self._model.weights, tokens, lengths, self._chunk, self._keep_back
    )
    limits = np.array([0 if r is None else r.limit for r in requests], np.int32)
    samplings = [Sampling() if r is None else r.options for r in requests]
    options = sampling.make_options(samplings, *self._stop_shape)
    return loop.start(
      self._model.reader, cache, logits, log_probs, tokens, lengths, limits, options
    )

  def _unsent(self, row: int, request: Request, text: np.ndarray, length: int) -> np.ndarray:
    """New ids that no stop string can take back any more."""
    held = max((len(sampling.stop_ids(s)) for s in request.options.stop), default=1) - 1
    start = len(request.ids) + self._sent[row]
    ids = text[start : max(length - held, start)]
    self._sent[row] += len(ids)
    return ids

  def _last_piece(self, row: int, request: Request, text: np.ndarray) -> Piece:
    result = self._result(row, request, text)
    return Piece(request.index, result.ids[self._sent[row] :], result)

  def _result(self, row: int, request: Request, text: np.ndarray) -> Generation:
    """What became of a prompt whose row, with ids `text` [T], has finished."""
    state, reader = self._state, self._model.reader
    starts, entropies = reader.patches(state.cache)
    fields = (state.length, state.finish, state.passes, state.log_probs, starts, entropies)
    length, finish, passes, log_probs, starts, entropies = jax.device_get(
      jax.tree.map(lambda x: x[row], fields)
    )
    start, end = len(request.ids), int(length)
    if finish == loop.PATCHES and end == start:
      return failed(
        f"The prompt needs more patches than max_patches leaves room for "
        f"({reader.max_patches}); raise it."
      )
    if finish == loop.STOP:
      end -= _stop_length(request.options, text[start:end])
    return Generation(
      prompt=request.ids,
      ids=text[start:end],
      log_probs=log_probs[start:end],
      finish=_FINISH[int(finish)],
      starts=None if starts is None else starts[:end],
      entropies=None if entropies is None else entropies[:end],
      passes=int(passes),
    )


def _stop_length(options: Sampling, ids: np.ndarray) -> int:
  """Length of the longest stop string that ids end with."""
  stops = (sampling.stop_ids(s) for s in options.stop)
  return max(len(s) for s in stops if len(s) <= len(ids) and (ids[-len(s) :] == s).all())


def _stop_shape(requests: Sequence[Request]) -> tuple[int, int]:
  """Number and length of stop strings, rounded up so that few programs are compiled."""
  stops = [[len(sampling.stop_ids(s)) for s in r.options.stop] for r in requests]
  number = max(len(s) for s in stops)
  length = max((n for s in stops for n in s), default=1)
  return 1 << (max(number, 1) - 1).bit_length(), 1 << (length - 1).bit_length()
