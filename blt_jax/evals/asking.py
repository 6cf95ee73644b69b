"""Asks a model what tasks want to know: items that begin alike together, longest first."""

import collections
import concurrent.futures
import functools
import queue
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from blt_jax.decode import Generator, Sampling, Scorer, placement
from blt_jax.decode.generation import Generation
from blt_jax.decode.language_model import LanguageModel
from blt_jax.decode.scoring import divide
from blt_jax.evals.task import Choice, Continue, FirstLine, Request, Text

_WAITING = 16  # prompts for each row of the generator, before which shorter ones wait
_ALIKE = 128  # characters in which prompts with the same examples agree

Answer = tuple[tuple[int, int], Any]  # of request j of item i


def ask(
  model: LanguageModel,
  asked: Sequence[Sequence[Request]],
  batch_size: int = 8,
  devices: Sequence[jax.Device] = (),
) -> Iterator[tuple[int, list[Any]]]:
  """Answers the requests of items, as many at a time as a batch holds.

  What a model has no room for is cut: contexts from the left, and of a text or a choice that
  is longer than the room each byte sees at least half of it. See `is_cut`.

  Args:
    model: see `decode.language_model`.
    asked: requests of each item.
    batch_size: rows that the model reads or writes at a time.
    devices: that share the batches, each with the whole model; by default where it is.

  Yields:
    Numbers of items and the answers to their requests, as they come; see `task.Request`.
  """
  told: dict[int, dict[int, Any]] = {}
  for (item, number), answer in _answers(model, asked, batch_size, devices):
    own = told.setdefault(item, {})
    own[number] = answer
    if len(own) == len(asked[item]):
      yield item, [answer for _, answer in sorted(told.pop(item).items(), key=lambda x: x[0])]


def size(requests: Sequence[Request]) -> int:
  """Bytes to read and to write for the requests of an item, or nearly."""
  return sum(
    len("".join([r.context, *r.continuations]).encode())
    if isinstance(r, Choice)
    else len(r[0].encode()) + (r.max_bytes if isinstance(r, Continue) else 0)
    for r in requests
  )


def is_cut(model: LanguageModel, request: Request) -> bool:
  """Whether the model has too little room for all that it should see."""
  room = model.reader.max_length
  if room is None:
    return False
  if isinstance(request, Choice):
    longest = max(len(c.encode()) for c in request.continuations)
    return len(request.context.encode()) + longest >= room
  return size([request]) >= room


def _answers(model, asked, batch_size, devices) -> Iterator[Answer]:
  order = _order([requests[0][0] for requests in asked], [*map(_longest, asked)], batch_size)
  numbered = [((i, j), request) for i in order for j, request in enumerate(asked[i])]
  writes = [x for x in numbered if isinstance(x[1], Continue)]
  reads = [x for x in numbered if not isinstance(x[1], Continue)]
  room = _room([r.prompt for _, r in writes], [r.max_bytes for _, r in writes])
  # More prompts than rows, and work for every device.
  waiting = max(min(_WAITING, len(writes) // (batch_size * max(len(devices), 1))), 1)
  jobs = [
    *(functools.partial(_score, part) for part in divide(reads, batch_size)),
    *(
      functools.partial(_write_part, part, room)
      for part in divide(writes, batch_size * waiting)
    ),
  ]
  models = [model]
  if min(len(devices), len(jobs)) > 1:
    models = placement.copies(model, devices[: len(jobs)])
  yield from _do(jobs, [_Worker(model, batch_size) for model in models])


def _order(texts: Sequence[str], lengths: Sequence[int], batch_size: int) -> list[int]:
  """Numbers of items by how they begin, where many begin so; then the longest first."""
  starts = [text[:_ALIKE] for text in texts]
  counts = collections.Counter(starts)
  alike = [start if counts[start] >= batch_size else "" for start in starts]
  return sorted(range(len(texts)), key=lambda i: (alike[i], -lengths[i]))


class _Worker:
  """A model on its device, and what it has read."""

  def __init__(self, model: LanguageModel, batch_size: int):
    self.model, self.batch_size = model, batch_size

  @functools.cached_property
  def scorer(self) -> Scorer:
    """Which keeps what contexts begin with."""
    return Scorer(self.model, batch_size=self.batch_size)


def _do(
  jobs: Sequence[Callable[[_Worker], Iterator[Answer]]], workers: Sequence[_Worker]
) -> Iterator[Answer]:
  """Has each job done by the next worker that is free; gives answers as they come."""
  if len(workers) == 1:
    for job in jobs:
      yield from job(workers[0])
    return
  free = queue.SimpleQueue[_Worker]()
  for worker in workers:
    free.put(worker)

  def run(job) -> list[Answer]:
    worker = free.get()
    try:
      return list(job(worker))
    finally:
      free.put(worker)

  pool = concurrent.futures.ThreadPoolExecutor(len(workers))
  try:
    for done in concurrent.futures.as_completed([pool.submit(run, job) for job in jobs]):
      yield from done.result()
  finally:
    pool.shutdown(cancel_futures=True)


def _room(prompts: Sequence[str], max_bytes: Sequence[int]) -> int:
  """Ids that the longest row needs; all have as many, so that a task compiles once."""
  sizes = (len(p.encode()) + n for p, n in zip(prompts, max_bytes, strict=True))
  return max(sizes, default=0) + 1


def _continue(
  model: LanguageModel, requests: Sequence[Continue], batch_size: int, room: int
) -> Iterator[tuple[int, str]]:
  """Numbers of requests and what the model writes, in rows of `room` ids.

  A `FirstLine` ends with its first newline; where that ends a blank line, it goes on once more.
  """
  blank: dict[int, str] = {}
  prompts = [request.prompt for request in requests]
  options = [_sampling(request) for request in requests]
  for number, told in write(model, prompts, options, batch_size, room):
    text, is_line = told.text, isinstance(requests[number], FirstLine)
    if is_line and told.finish == "stop" and not text.strip():
      blank[number] = f"{text}\n"
    else:
      yield number, text

  numbers = list(blank)
  prompts = [requests[n].prompt + blank[n] for n in numbers]
  options = [_sampling(requests[n], blank[n]) for n in numbers]
  for place, told in write(model, prompts, options, batch_size, room):
    yield numbers[place], blank[numbers[place]] + told.text


def _sampling(request: Continue, written: str = "") -> Sampling:
  """The likeliest bytes, after those that were written."""
  is_line = isinstance(request, FirstLine) and not written
  left = max(request.max_bytes - len(written.encode()), 1)
  return Sampling(
    max_bytes=left, stop=(*request.stop, "\n") if is_line else request.stop, temperature=0.0
  )


def _longest(requests: Sequence[Request]) -> int:
  return max(len(request[0]) for request in requests)


def _score(part, worker: _Worker) -> Iterator[Answer]:
  """How likely continuations and texts are, in nats."""
  windows = [_windows(request, worker.model.reader.max_length) for _, request in part]
  pairs = [pair for own in windows for some in own for pair in some]
  scores = iter(worker.scorer.loglikelihood(pairs))
  for (place, request), own in zip(part, windows, strict=True):
    found = [_join([next(scores) for _ in some]) for some in own]
    yield place, found[0][0] if isinstance(request, Text) else found


def _join(scores: Sequence[tuple[float, bool]]) -> tuple[float, bool]:
  """Nats and greediness of a whole, from those of its windows."""
  return sum(nats for nats, _ in scores), all(is_greedy for _, is_greedy in scores)


def _write_part(part, room: int, worker: _Worker) -> Iterator[Answer]:
  """What the model writes after prompts."""
  requests = [request for _, request in part]
  for number, text in _continue(worker.model, requests, worker.batch_size, room):
    yield part[number][0], text


def _windows(request: Choice | Text, room: int | None) -> list[list[tuple[bytes, bytes]]]:
  """Contexts and continuations, of each whole one or more; the room includes a BOS."""
  if isinstance(request, Choice):
    context, ends = request.context.encode(), [c.encode() for c in request.continuations]
    kept = len(context) if room is None else max(room - 1 - max(map(len, ends)), 0)
    return [_parts(context[max(len(context) - kept, 0) :], end, room) for end in ends]
  text = request.text.encode()
  return [_parts(b"", text, room) if text else []]


def _parts(context: bytes, end: bytes, room: int | None) -> list[tuple[bytes, bytes]]:
  """A continuation in parts, where it is longer than the room."""
  if room is None or len(context) + len(end) < room:
    return [(context, end)]
  half = (room - 1) // 2
  cuts = range(0, len(end), half)
  return [(end[max(at - half, 0) : at], end[at : at + half]) for at in cuts]


def write(
  model: LanguageModel,
  prompts: Sequence[str],
  options: Sequence[Sampling],
  batch_size: int = 8,
  room: int | None = None,
) -> Iterator[tuple[int, Generation]]:
  """Continues prompts, those that begin alike together; stops are cut.

  Rows have `room` ids, by default as the longest needs.

  Yields:
    Numbers of prompts and what the model writes, as it comes.

  Raises:
    ValueError: a prompt is no text.
  """
  if room is None:
    room = _room(prompts, [o.max_bytes for o in options])
  if model.reader.max_length is not None:
    room = min(room, model.reader.max_length)
  generator = Generator(
    model, batch_size=batch_size, max_length=room, truncate=True, share_starts=True
  )
  order = _order(prompts, [*map(len, prompts)], batch_size)
  for part in divide(order, batch_size * _WAITING):
    texts, sampled = [prompts[i] for i in part], [options[i] for i in part]
    for piece in generator.stream(texts, sampled, stride=2**30):
      if piece.result is not None and piece.result.error is not None:
        raise ValueError(f"The prompt {texts[piece.index]!r}: {piece.result.error}")
      if piece.result is not None:
        yield part[piece.index], piece.result
