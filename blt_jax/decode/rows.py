"""The rows that are continued at a time; each takes the next prompt when it is done."""

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from blt_jax import tokenizer
from blt_jax.decode import loop, piece_text, sampling
from blt_jax.decode.drafting import Drafting
from blt_jax.decode.generation import Generation, Piece, failed
from blt_jax.decode.language_model import LanguageModel
from blt_jax.decode.room import rows_that_fit
from blt_jax.decode.sampling import Sampling
from blt_jax.decode.shared_start import StartReader

_FINISH = {
  loop.END: "end", loop.STOP: "stop", loop.LENGTH: "length", loop.PATCHES: "patches",
}  # fmt: skip
_LOOK = 16  # passes after which the text of pieces is looked at
_COPIES = 1.4  # of caches: those of all rows, and of the part that begins
_REFILLS = 8  # parts of the rows; when one is free, it takes the next prompts at once
_ROUND = 128  # rows have a multiple of this many bytes, so that few programs are compiled


@dataclasses.dataclass(frozen=True)
class Request:
  """A prompt that is as it should be.

  Attributes:
    index: number of the prompt.
    ids: int32 [n], BOS first.
    limit: bytes of the prompt and its continuation at most.
    options: how to continue it.
    start: what the first new id must begin with, where ids are pieces: the prompt's end.
  """

  index: int
  ids: np.ndarray
  limit: int
  options: Sampling
  start: bytes = b""


class Rows:
  """The rows of one call, and the prompts that wait."""

  def __init__(
    self,
    model: LanguageModel,
    drafting: Drafting | None,
    chunk: int,
    requests: Sequence[Request],
    batch_size: int,
    least_room: int = 0,
    share_starts: bool = False,
  ):
    """Reads the first prompts.

    Args:
      model: as of `Generator`.
      drafting: likewise.
      chunk: likewise.
      requests: the prompts.
      batch_size: likewise.
      least_room: ids that rows have room for, at least; by default as the prompts need.
      share_starts: as of `Generator`; such rows cannot `go_on`.
    """
    self._model, self._drafting, self._pieces = model, drafting, model.pieces
    self._keep_back = drafting.length if drafting else 1
    longest = max(least_room, *(r.limit for r in requests))
    capacity = -(-longest // _ROUND) * _ROUND
    self._capacity, self._chunk = capacity, min(chunk, capacity)
    self._starts = StartReader(model, self._chunk, self._keep_back) if share_starts else None
    self._waiting = collections.deque(requests)
    num_rows = min(batch_size, 1 << (len(requests) - 1).bit_length())
    num_rows = rows_that_fit(model, num_rows, capacity, self._keep_back, _COPIES)
    self._prepare_options(requests)
    self._rows: list[Request | None] = [None] * num_rows
    self._group = max(num_rows // _REFILLS, 1)
    self._fill(range(num_rows))
    self._sent = [0] * num_rows
    self._state = self._start(self._rows)

  def _prepare_options(self, requests: Sequence[Request]) -> None:
    self._stop_shape = _stop_shape([self._device_options(r) for r in requests])
    self._parts = frozenset().union(*(r.options.parts for r in requests))

  def go_on(self, request: Request) -> bool:
    """Makes another prompt that of the only row, reading what is new in it.

    Returns:
      Whether it could: the prompt begins with all that the row has read and written, and has
      room.
    """
    length, text, log_probs = jax.device_get(
      (self._state.length[0], self._state.text[0], self._state.log_probs[0])
    )
    ids, count = request.ids, len(request.ids) - length
    is_more = count > 0 and (ids[:length] == text[:length]).all()
    if not is_more or request.limit > self._capacity:
      return False
    new = np.zeros((1, self._capacity), np.int32)
    new[0, :count] = ids[length:]
    model = self._model
    cache, logits, found, _ = loop.read_more(
      model.reader, model.weights, self._state.cache, self._state.logits, new,
      np.array([count], np.int32), self._chunk,
    )  # fmt: skip
    log_probs = np.concatenate([log_probs[:length], np.asarray(found[0])])[: self._capacity]
    # --- A row that has read its prompt, as at first
    self._rows, self._sent = [request], [0]
    self._prepare_options([request])
    self._state = self._begin(self._rows, cache, logits, jnp.asarray(log_probs)[None])
    return True

  def run(self, stride: int) -> Iterator[Piece]:
    """Continues all prompts, with a look at the results every `stride` passes."""
    if self._pieces is not None:  # their text is looked at here
      stride = min(stride, _LOOK)
    while True:
      # --- News of each row
      lengths, finish, text = jax.device_get(
        (self._state.length, self._state.finish, self._state.text)
      )
      done = []
      for row, request in enumerate(self._rows):
        if request is None:
          continue
        if finish[row] != loop.RUNNING or self._has_ended(request, text[row], lengths[row]):
          yield self._last_piece(row, request, text[row])
          done.append(row)
        elif (piece := self._next_piece(row, request, text[row], lengths[row])) is not None:
          yield piece

      # --- New prompts in place of what is done, and on
      self._refill(done)
      if not any(self._rows):
        return
      self._state = loop.generate(
        self._model.reader,
        self._model.weights,
        self._state,
        jnp.int32(stride),
        jnp.int32(self._group - self._rows.count(None) if self._waiting else 2**30),
        self._drafting,
        self._parts,
      )

  def _refill(self, done: Sequence[int]) -> None:
    """Gives rows that are free to the next prompts, many at a time."""
    for row in done:
      self._rows[row], self._sent[row] = None, 0
    free = [row for row, request in enumerate(self._rows) if request is None]
    if self._waiting and len(free) == len(self._rows):
      self._fill(free)
      del self._state  # its memory is free before the next is made
      self._state = self._start(self._rows)  # all at once, as at first
      return
    while self._waiting and len(free) >= self._group:
      rows, free = free[: self._group], free[self._group :]
      self._fill(rows)
      new = self._start([self._rows[row] for row in rows])
      self._state = loop.replace_rows(self._state, np.array(rows, np.int32), new)

  def _fill(self, rows: Sequence[int]) -> None:
    for row in rows[: len(self._waiting)]:
      self._rows[row] = self._waiting.popleft()

  def _start(self, requests: Sequence[Request | None]) -> loop.State:
    """Reads prompts; rows without one rest."""
    if self._starts is not None:
      texts = [r.ids for r in requests if r is not None]
      cache, logits = self._starts.read(texts, len(requests), self._capacity)
      return self._begin(requests, cache, logits, jnp.zeros((len(requests), self._capacity)))
    cache, logits, log_probs, _ = loop.prefill(
      self._model.reader, self._model.weights, *self._texts(requests), self._chunk,
      self._keep_back,
    )  # fmt: skip
    return self._begin(requests, cache, logits, log_probs)

  def _texts(self, requests: Sequence[Request | None]) -> tuple[np.ndarray, np.ndarray]:
    """Prompts int32 [B, T], and their lengths int32 [B]; a BOS where there is none."""
    tokens = np.zeros((len(requests), self._capacity), np.int32)
    ids = [np.array([tokenizer.BOS_ID]) if r is None else r.ids for r in requests]
    for row, prompt in zip(tokens, ids, strict=True):
      row[: len(prompt)] = prompt
    return tokens, np.array([len(x) for x in ids], np.int32)

  def _begin(
    self,
    requests: Sequence[Request | None],
    cache: Any,
    logits: jax.Array,
    log_probs: jax.Array,
  ) -> loop.State:
    """Rows that have read their prompts, by what `loop.prefill` gives, with their options."""
    logits = self._keep_starts(requests, logits)
    limits = np.array([0 if r is None else r.limit for r in requests], np.int32)
    samplings = [Sampling() if r is None else self._device_options(r) for r in requests]
    options = sampling.make_options(samplings, *self._stop_shape)
    return loop.start(
      self._model.reader, cache, logits, log_probs, *self._texts(requests), limits, options
    )

  def _device_options(self, request: Request) -> Sampling:
    """Stop strings are found in ids on the device, in the text of pieces here."""
    if self._pieces is None:
      return request.options
    return dataclasses.replace(request.options, stop=())

  def _keep_starts(self, requests: Sequence[Request | None], logits: jax.Array) -> jax.Array:
    """Logits [B, V] that rule out first pieces which do not begin with their prompt's end."""
    if self._pieces is None or not any(r is not None and r.start for r in requests):
      return logits
    is_right = np.ones(logits.shape, bool)
    for row, request in zip(is_right, requests, strict=True):
      if request is not None and request.start:
        row[:] = self._pieces.starting_with(request.start)
    return jnp.where(is_right, logits, -jnp.inf)

  def _has_ended(self, request: Request, text: np.ndarray, length: int) -> bool:
    """Whether the text of pieces has met a stop string or its last byte."""
    if self._pieces is None:
      return False
    ids = text[len(request.ids) : length]
    return piece_text.read(self._pieces, request.start, ids, request.options).finish is not None

  def _next_piece(
    self, row: int, request: Request, text: np.ndarray, length: int
  ) -> Piece | None:
    """New ids that no stop string can take back any more; None if there are none."""
    start, sent = len(request.ids), self._sent[row]
    ids = text[start:length]
    if self._pieces is None:
      held = max((len(sampling.stop_ids(s)) for s in request.options.stop), default=1) - 1
      count, raw = max(len(ids) - held, sent), None
    else:
      count, raw = self._settled(request, ids, sent)
    self._sent[row] = count
    return Piece(request.index, ids[sent:count], raw=raw) if count > sent else None

  def _settled(self, request: Request, ids: np.ndarray, sent: int) -> tuple[int, bytes]:
    """How many of the ids of pieces say what stays, and what those say that were not sent."""
    pieces, skip = self._pieces, len(request.start)
    assert pieces is not None
    raw = piece_text.read(pieces, request.start, ids, request.options).raw
    ends = np.cumsum(pieces.sizes[ids])
    stays = skip + piece_text.settled(raw, request.options)
    count = max(int(np.searchsorted(ends, stays, side="right")), sent)
    first, last = (self._num_bytes(request, ids[:n]) for n in (sent, count))
    return count, raw[first:last]

  def _num_bytes(self, request: Request, ids: np.ndarray) -> int:
    """Bytes of the continuation in its first ids [n] of pieces."""
    assert self._pieces is not None
    return max(int(self._pieces.sizes[ids].sum()) - len(request.start), 0)

  def _last_piece(self, row: int, request: Request, text: np.ndarray) -> Piece:
    result, sent = self._result(row, request, text), self._sent[row]
    raw = None
    if result.raw is not None:
      raw = result.raw[self._num_bytes(request, result.ids[:sent]) :]
    return Piece(request.index, result.ids[sent:], result, raw)

  def _result(self, row: int, request: Request, text: np.ndarray) -> Generation:
    """What became of a prompt whose row, with ids `text` [T], has finished."""
    state, reader = self._state, self._model.reader
    starts, entropies = reader.patches(state.cache)
    fields = (state.length, state.finish, state.passes, state.log_probs, starts, entropies)
    length, finish, passes, log_probs, starts, entropies = jax.device_get(
      jax.tree.map(lambda x: x[row], fields)
    )

    # --- Where its continuation ends, and why
    start, end = len(request.ids), int(length)
    if finish == loop.PATCHES and end == start:
      return failed(
        f"The prompt needs more patches than max_patches leaves room for "
        f"({reader.max_patches}); raise it."
      )
    if finish == loop.STOP:
      end -= _stop_length(request.options, text[start:end])
    reason, raw = _FINISH.get(int(finish), ""), None
    if self._pieces is not None:
      end, reason, raw = self._end_pieces(request, text[:end], reason)

    return Generation(
      prompt=request.ids,
      ids=text[start:end],
      log_probs=log_probs[start:end],
      finish=reason,
      starts=None if starts is None else starts[:end],
      entropies=None if entropies is None else entropies[:end],
      passes=int(passes),
      raw=raw,
    )

  def _end_pieces(
    self, request: Request, text: np.ndarray, reason: str
  ) -> tuple[int, str, bytes]:
    """Where the ids [n] of a row of pieces end, why, and what they say."""
    assert self._pieces is not None
    start = len(request.ids)
    read = piece_text.read(self._pieces, request.start, text[start:], request.options)
    if read.finish is None and reason == "length" and request.options.valid_utf8:
      return len(text), reason, read.raw[: piece_text.whole_characters(read.raw)]
    if read.finish is None:
      return len(text), reason, read.raw
    num_bytes = len(request.start) + len(read.raw)
    return (
      start + piece_text.count_ids(self._pieces, text[start:], num_bytes), read.finish, read.raw
    )  # fmt: skip


def _stop_length(options: Sampling, ids: np.ndarray) -> int:
  """Length of the longest stop string that ids end with."""
  stops = (sampling.stop_ids(s) for s in options.stop)
  return max(len(s) for s in stops if len(s) <= len(ids) and (ids[-len(s) :] == s).all())


def _stop_shape(options: Sequence[Sampling]) -> tuple[int, int]:
  """Number and length of stop strings, rounded up so that few programs are compiled."""
  stops = [[len(sampling.stop_ids(s)) for s in o.stop] for o in options]
  number = max(len(s) for s in stops)
  length = max((n for s in stops for n in s), default=1)
  return 1 << (max(number, 1) - 1).bit_length(), 1 << (length - 1).bit_length()
