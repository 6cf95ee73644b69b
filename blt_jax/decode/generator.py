"""Continuing prompts, several at a time."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from blt_jax import tokenizer
from blt_jax.decode import piece_text
from blt_jax.decode.drafting import Drafting, check_drafting
from blt_jax.decode.generation import Generation, Piece, failed
from blt_jax.decode.language_model import LanguageModel
from blt_jax.decode.piece_text import Pieces
from blt_jax.decode.rows import Request, Rows
from blt_jax.decode.sampling import Sampling

Prompt = str | bytes | np.ndarray  # text, raw bytes, or int ids [n] with BOS


_LEAST_ROOM = 2048  # ids of a dialogue; doubled when they are spent


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
    share_starts: bool = False,
  ):
    """Takes the model and sizes.

    Args:
      model: see `language_model`.
      batch_size: rows at a time at most.
      max_length: bytes of a prompt and its continuation together, BOS included; of a model
        over pieces, pieces.
      truncate: keep BOS and the end of a prompt that leaves no room for `max_bytes` new ones
        (at most half of max_length), instead of an error or fewer new bytes.
      drafting: how to draft bytes; None for one byte at a time. The output is the same.
      prefill_chunk: bytes of a prompt that are read at once.
      share_starts: read once what neighbouring prompts begin with, as prompts with the same
        examples do, in rows of max_length, so that all calls share programs. Then the last
        bits of log-probabilities depend on the neighbours.

    Raises:
      ValueError: a size is too small, or the drafter is none that this model has.
    """
    check_sizes(
      batch_size=(batch_size, 1), max_length=(max_length, 2), prefill_chunk=(prefill_chunk, 1)
    )
    if drafting is not None:
      check_drafting(drafting, model.reader)
    self._model = model
    self._batch_size = batch_size
    self._max_length = max_length
    self._truncate = truncate
    self._drafting = drafting
    self._chunk = prefill_chunk
    self._share_starts = share_starts
    self._kept: Rows | None = None  # of `reply`

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
      ValueError: prompts are no list, or options not `Sampling`, one for all or one each.
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
      stride: passes of the model between two looks at the results, in eights.

    Raises:
      ValueError: as `generate`, or the stride is less than 1.
    """
    check_sizes(stride=(stride, 1))
    return self._run(prompts, options, stride)

  def reply(
    self, prompt: Prompt, options: Sampling | None = None, stride: int = 16
  ) -> Iterator[Piece]:
    """As `stream` of one prompt, and keeps what was read and written for the next call.

    A prompt that begins with all of it, as a dialogue does that goes on, is not read again
    from its start.

    Args:
      prompt: text to continue.
      options: how.
      stride: as of `stream`.
    """
    check_sizes(stride=(stride, 1))
    try:
      request = self._request(0, prompt, options or Sampling())
    except ValueError as error:
      result = failed(str(error))
      yield Piece(0, result.ids, result)
      return
    if self._kept is None or not self._kept.go_on(request):
      room = max(1 << (request.limit - 1).bit_length(), _LEAST_ROOM)
      self._kept = None  # its memory is free before the next is made
      self._kept = Rows(self._model, self._drafting, self._chunk, [request], 1, room)
    yield from self._kept.run(stride)

  def _run(
    self,
    prompts: Sequence[Prompt],
    options: Sampling | Sequence[Sampling] | None,
    stride: int,
  ) -> Iterator[Piece]:
    check_texts("prompts", prompts)
    samplings = _one_each(prompts, options)
    requests, failures = [], []
    for index, (prompt, sampled) in enumerate(zip(prompts, samplings, strict=True)):
      try:
        requests.append(self._request(index, prompt, sampled))
      except ValueError as error:
        result = failed(str(error))
        failures.append(Piece(index, result.ids, result))
    yield from failures
    if requests:
      rows = Rows(
        self._model, self._drafting, self._chunk, requests, self._batch_size,
        self._max_length if self._share_starts else 0, self._share_starts,
      )  # fmt: skip
      yield from rows.run(stride)

  def _request(self, index: int, prompt: Prompt, options: Sampling) -> Request:
    pieces, start = self._model.pieces, b""
    ids = encode_prompt(prompt, pieces)
    room = self._max_length - len(ids)
    if room < 1 and not self._truncate:
      unit = "bytes" if pieces is None else "pieces"
      raise ValueError(
        f"The prompt has {len(ids)} {unit}, BOS included, and max_length is "
        f"{self._max_length}: shorten it, raise max_length, or set truncate to keep its end."
      )
    longest = self._max_length - min(options.max_bytes, self._max_length // 2)
    if self._truncate and len(ids) > longest:
      ids = np.concatenate([ids[:1], ids[len(ids) - longest + 1 :]])
    limit = min(len(ids) + options.max_bytes, self._max_length)
    if pieces is not None and isinstance(prompt, str | bytes):
      ids, start = piece_text.open_end(pieces, ids)
    return Request(index, ids, limit, options, start)


def encode_prompt(prompt: Prompt, pieces: Pieces | None = None) -> np.ndarray:
  """Ids int32 [n] of a prompt, BOS first, of bytes or of pieces.

  Raises:
    ValueError: ids are none of the vocabulary, or there are none, or a text is no text.
  """
  if isinstance(prompt, str) and not tokenizer.is_text(prompt):
    raise ValueError(f"{prompt!r} has a lone surrogate, which UTF-8 has no bytes for.")
  if isinstance(prompt, str | bytes) and pieces is not None:
    raw = prompt.encode() if isinstance(prompt, str) else prompt
    return np.concatenate([[tokenizer.BOS_ID], pieces.encode(raw)]).astype(np.int32)
  if isinstance(prompt, str | bytes):
    return tokenizer.encode(prompt, add_eos=False)
  size = tokenizer.VOCAB_SIZE if pieces is None else len(pieces.sizes)
  ids = np.asarray(prompt)
  if ids.ndim != 1 or not len(ids) or not np.issubdtype(ids.dtype, np.integer):
    raise ValueError(f"Prompt ids must be a list of integers, BOS first, got {ids.shape}.")
  if ids.min() < 0 or ids.max() >= size:
    raise ValueError(f"Prompt ids must be in [0, {size}).")
  return ids.astype(np.int32)


def check_texts(name: str, texts: Any) -> None:
  """Raises ValueError where one text stands for a list of texts."""
  if not isinstance(texts, Sequence) or isinstance(texts, str | bytes):
    raise ValueError(f"{name} must be a list, got {type(texts).__name__}; [...] makes one.")


def check_sizes(**sizes: tuple[int, int]) -> None:
  """Raises ValueError where one of name=(size, least) is less than that."""
  for name, (size, least) in sizes.items():
    if size < least:
      raise ValueError(f"{name} is {size}; it must be >= {least}.")


def _one_each(
  prompts: Sequence[Prompt], options: Sampling | Sequence[Sampling] | None
) -> Sequence[Sampling]:
  if options is None or isinstance(options, Sampling):
    return [options or Sampling()] * len(prompts)
  if not isinstance(options, Sequence) or not all(isinstance(o, Sampling) for o in options):
    raise ValueError(f"options must be Sampling, one or a list of them, got {options!r}.")
  if len(options) != len(prompts):
    raise ValueError(f"{len(prompts)} prompts and {len(options)} options; give one for each.")
  return options
