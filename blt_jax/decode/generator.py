"""Continuing prompts: a fixed number of rows, each taking the next prompt when it is done."""

import collections
import dataclasses
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from blt_jax import tokenizer
from blt_jax.decode import loop, sampling
from blt_jax.decode.blt import BLTCache
from blt_jax.decode.drafting import Drafting, check_drafting
from blt_jax.decode.language_model import LanguageModel
from blt_jax.decode.sampling import Sampling

Prompt = str | bytes | np.ndarray  # text, raw bytes, or int ids [n] with BOS
FINISH = {
  loop.END: "end", loop.STOP: "stop", loop.LENGTH: "length", loop.PATCHES: "patches",
}  # fmt: skip
_ROUND = 128  # rows have a multiple of this many bytes, so that few programs are compiled


@dataclasses.dataclass(frozen=True)
class Generation:
  """A prompt and its continuation.

  Attributes:
    prompt: int32 [n] ids, BOS first.
    ids: int32 [m] new ids, an EOS included; a stop string is cut off.
    log_probs: float32 [m], of the new ids under the model itself, in nats.
    finish: "end" (EOS), "stop", "length" (`max_bytes`, or the row is full), "patches"
      (no room for more patches; see `max_patches`), or "error".
    error: what was wrong with the prompt, for "error".
    starts: bool [n + m], bytes that start a patch; None where there are none.
    entropies: float32 [n + m] nats, of the prediction made at each byte; likewise.
    passes: reads of the model that the new bytes took; fewer than m with drafts.
  """

  prompt: np.ndarray
  ids: np.ndarray
  log_probs: np.ndarray
  finish: str
  error: str | None = None
  starts: np.ndarray | None = None
  entropies: np.ndarray | None = None
  passes: int = 0

  @property
  def bytes(self) -> bytes:
    """The continuation."""
    return tokenizer.decode_bytes(self.ids)

  @property
  def text(self) -> str:
    """The continuation; what is not UTF-8 shows as U+FFFD."""
    return self.bytes.decode("utf-8", errors="replace")


@dataclasses.dataclass(frozen=True)
class Piece:
  """News of one prompt: more bytes, and in the end everything."""

  index: int  # of the prompt
  ids: np.ndarray  # int32, new since the last piece
  result: Generation | None = None  # with the last piece


class Generator:
  """Continues texts with a model, on the device, several at a time."""

  def __init__(
    self,
    model: LanguageModel,
    *,
    batch_size: int = 8,
    max_length: int = 4096,
    truncate: bool = False,
    drafting: Drafting | None = None,
    prefill_chunk: int = 256,
  ):
    """Takes the model and sizes.

    Args:
      model: see `language_model`.
      batch_size: rows at a time at most.
      max_length: bytes of a prompt and its continuation together, BOS included.
      truncate: keep BOS and the end of a prompt that is too long, instead of an error.
      drafting: how to draft bytes; None for one byte at a time. The output is the same.
      prefill_chunk: bytes of a prompt that are read at once.

    Raises:
      ValueError: the drafter is none that this model has.
    """
    if batch_size < 1 or max_length < 2 or prefill_chunk < 1:
      raise ValueError(
        f"batch_size {batch_size} and prefill_chunk {prefill_chunk} must be >= 1, "
        f"max_length {max_length} >= 2."
      )
    if drafting is not None:
      check_drafting(drafting, model.reader)
    self._model = model
    self._batch_size = batch_size
    self._max_length = max_length
    self._truncate = truncate
    self._drafting = drafting
    self._chunk = prefill_chunk

  def generate(
    self, prompts: Sequence[Prompt], options: Sampling | Sequence[Sampling] | None = None
  ) -> list[Generation]:
    """Continues all prompts; a row that is done takes the next waiting prompt.

    What a prompt becomes depends on itself and its options, not on the others. One that
    is wrong gives a `Generation` with `finish` "error", and the others go on.

    Args:
      prompts: texts to continue; an empty one begins a new document.
      options: of all, or one for each.

    Returns:
      Results in the order of the prompts.

    Raises:
      ValueError: there are not as many options as prompts.
    """
    pieces = self._run(prompts, options, stride=2**30)
    results = {piece.index: piece.result for piece in pieces if piece.result is not None}
    return [results[i] for i in range(len(prompts))]

  def stream(
    self,
    prompts: Sequence[Prompt],
    options: Sampling | Sequence[Sampling] | None = None,
    stride: int = 16,
  ) -> Iterator[Piece]:
    """As `generate`, but yields bytes as they come.

    Bytes that may turn out to begin a stop string are held back.

    Args:
      prompts: texts to continue.
      options: of all, or one for each.
      stride: passes of the model between two looks at the results.
    """
    return self._run(prompts, options, stride)

  def _run(self, prompts, options, stride) -> Iterator[Piece]:
    samplings = _one_each(prompts, options)
    requests, failures = [], []
    for index, (prompt, sampled) in enumerate(zip(prompts, samplings, strict=True)):
      try:
        requests.append(self._request(index, prompt, sampled))
      except ValueError as error:
        failures.append(Piece(index, _NONE, _failed(str(error))))
    yield from failures
    if requests:
      yield from _Batch(self._model, self._drafting, self._chunk, requests,
                        self._batch_size).run(stride)  # fmt: skip

  def _request(self, index, prompt, options) -> "_Request":
    ids = encode_prompt(prompt)
    room = self._max_length - len(ids)
    if room < 1 and not self._truncate:
      raise ValueError(
        f"The prompt has {len(ids)} bytes, BOS included, and max_length is "
        f"{self._max_length}: shorten it, raise max_length, or let truncate keep its end."
      )
    longest = self._max_length - min(options.max_bytes, self._max_length // 2)
    if self._truncate and len(ids) > longest:
      ids = np.concatenate([ids[:1], ids[len(ids) - longest + 1 :]])
    limit = min(len(ids) + options.max_bytes, self._max_length)
    return _Request(index, ids, limit, options)


def encode_prompt(prompt: Prompt) -> np.ndarray:
  """Ids int32 [n] of a prompt, BOS first.

  Raises:
    ValueError: ids are none of the vocabulary, or there are none.
  """
  if isinstance(prompt, str | bytes):
    return tokenizer.encode(prompt, add_eos=False)
  ids = np.asarray(prompt)
  if ids.ndim != 1 or not len(ids) or not np.issubdtype(ids.dtype, np.integer):
    raise ValueError(f"Prompt ids must be a list of integers, BOS first, got {ids.shape}.")
  if ids.min() < 0 or ids.max() >= tokenizer.VOCAB_SIZE:
    raise ValueError(f"Prompt ids must be in [0, {tokenizer.VOCAB_SIZE}).")
  return ids.astype(np.int32)


_NONE = np.zeros(0, np.int32)


def _one_each(prompts, options):
  if options is None or isinstance(options, Sampling):
    return [options or Sampling()] * len(prompts)
  if len(options) != len(prompts):
    raise ValueError(f"{len(prompts)} prompts and {len(options)} options; give one for each.")
  return options


def _failed(error):
  return Generation(_NONE, _NONE, np.zeros(0, np.float32), "error", error)


@dataclasses.dataclass(frozen=True)
class _Request:
  index: int
  ids: np.ndarray
  limit: int
  options: Sampling


class _Batch:
  """The rows of one call, and the prompts that wait."""

  def __init__(self, model, drafting, chunk, requests, batch_size):
    self._model, self._drafting = model, drafting
    self._keep_back = drafting.length if drafting else 1
    capacity = -(-max(r.limit for r in requests) // _ROUND) * _ROUND
    self._capacity, self._chunk = capacity, min(chunk, capacity)
    self._waiting = collections.deque(requests)
    rows = min(batch_size, 1 << (len(requests) - 1).bit_length())
    self._stop_shape = _stop_shape(requests)
    self._is_greedy = all(r.options.is_greedy for r in requests)
    self._rows = [self._waiting.popleft() for _ in range(min(rows, len(requests)))]
    self._rows += [None] * (rows - len(self._rows))
    self._sent = [0] * rows
    self._state = self._start(self._rows)

  def run(self, stride) -> Iterator[Piece]:
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
        self._is_greedy,
      )

  def _refill(self, row):
    """Gives a row that is done to the next prompt."""
    self._rows[row] = self._waiting.popleft() if self._waiting else None
    self._sent[row] = 0
    if self._rows[row] is not None:
      new = self._start([self._rows[row]])
      self._state = loop.replace_row(self._state, jnp.int32(row), new)

  def _start(self, requests) -> loop.State:
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
    state = loop.start(cache, logits, log_probs, tokens, lengths, limits, options)
    is_full = self._model.reader.is_full(cache, self._keep_back)
    finish = jnp.where(is_full & (state.finish == loop.RUNNING), loop.PATCHES, state.finish)
    return dataclasses.replace(state, finish=finish)

  def _unsent(self, row, request, text, length):
    """New ids that no stop string can take back any more."""
    held = max((len(sampling.stop_ids(s)) for s in request.options.stop), default=1) - 1
    start = len(request.ids) + self._sent[row]
    ids = text[start : max(length - held, start)]
    self._sent[row] += len(ids)
    return ids

  def _last_piece(self, row, request, text) -> Piece:
    state = jax.tree.map(lambda x: x[row], self._state)
    result = _result(request, state, text)
    return Piece(request.index, result.ids[self._sent[row] :], result)


def _result(request, state, text) -> Generation:
  """Builds the result from the state of one row, the batch axis taken off."""
  length, finish, passes = (int(x) for x in (state.length, state.finish, state.passes))
  start, end = len(request.ids), length
  if finish == loop.PATCHES and end == start:
    return _failed(
      f"The prompt needs more patches than max_patches leaves room for "
      f"({state.cache.patches.shape[0]}); raise it."
    )
  if finish == loop.STOP:
    end -= _stop_length(request.options, text[start:end])
  starts = entropies = None
  if isinstance(state.cache, BLTCache):
    entropies = np.asarray(state.cache.entropies)[:end]
    starts = np.zeros(end, bool)
    places = np.asarray(state.cache.starts)[: int(state.cache.cursor.patch) + 1]
    starts[places[places < end]] = True
  return Generation(
    prompt=request.ids,
    ids=text[start:end],
    log_probs=np.asarray(state.log_probs)[start:end],
    finish=FINISH[finish],
    starts=starts,
    entropies=entropies,
    passes=passes,
  )


def _stop_length(options, ids):
  """Length of the longest stop string that ids end with."""
  stops = (sampling.stop_ids(s) for s in options.stop)
  return max(len(s) for s in stops if len(s) <= len(ids) and (ids[-len(s) :] == s).all())


def _stop_shape(requests):
  """Number and length of stop strings, rounded up so that few programs are compiled."""
  stops = [[len(sampling.stop_ids(s)) for s in r.options.stop] for r in requests]
  number = max(len(s) for s in stops)
  length = max((n for s in stops for n in s), default=1)
  return 1 << (max(number, 1) - 1).bit_length(), 1 << (length - 1).bit_length()
