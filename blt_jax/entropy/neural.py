"""Entropies of documents by an entropy model, whatever their length.

A document is scored in chunks; the layers hand their last W keys and values from chunk to
chunk, so its entropies are those of the whole document read from its start.
"""

import collections
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from blt_jax import tokenizer
from blt_jax.entropy import hopper_byte_lm
from blt_jax.models import transformer
from blt_jax.models.byte_lm import ByteLM
from blt_jax.models.config import ByteLMConfig
from blt_jax.ops import attention, losses, scoring
from blt_jax.ops.precision import exact_products

# Documents of a lane begin at multiples of this, so that the order of the sums in a
# kernel's blocks does not depend on the documents before.
_ALIGNMENT = 64


class EntropyScorer:
  """Gives the entropies of one document at a time, on the CPU backend.

  Pickles into worker processes; compiles where it is first called.
  """

  def __init__(
    self,
    config: ByteLMConfig,
    params: Any,
    reset_at_newline: bool = False,
    chunk_length: int = 512,
  ):
    """Takes a model and its parameters.

    Args:
      config: of a model with an attention window.
      params: its parameters.
      reset_at_newline: the context begins anew after each newline byte.
      chunk_length: bytes scored in one go; at least a window is. It is the same for all
        documents, since sums of other shapes end in other bits.

    Raises:
      ValueError: the model has no window, so there is no end to what it must keep.
    """
    window_of(config)
    self._options = config, jax.device_get(params), reset_at_newline, 1, chunk_length

  @functools.cached_property
  def _scorer(self) -> "BatchScorer":
    devices = jax.local_devices(backend="cpu")[:1]
    return BatchScorer(*self._options, devices)

  def __call__(self, tokens: np.ndarray) -> np.ndarray:
    """Entropies in nats, float32 [n], of the predictions made at ids [n]."""
    return self._scorer([tokens])[0]

  def __getstate__(self) -> dict[str, Any]:
    return {"_options": self._options}


class BatchScorer:
  """Gives the entropies of many documents at once.

  Documents stand one after another in lanes, which go through the model side by side.
  """

  def __init__(
    self,
    config: ByteLMConfig,
    params: Any,
    reset_at_newline: bool = False,
    num_lanes: int = 8,
    chunk_length: int = 512,
    devices: Sequence[jax.Device] | None = None,
  ):
    """Takes a model and its parameters.

    Args:
      config: of a model with an attention window.
      params: its parameters.
      reset_at_newline: the context begins anew after each newline byte.
      num_lanes: rows of a batch; rounded up to a multiple of the devices.
      chunk_length: bytes of a row scored in one go; at least a window is.
      devices: to run on; by default all local ones.

    Raises:
      ValueError: the model has no window.
    """
    self._length = max(chunk_length, window_of(config))
    devices = jax.local_devices() if devices is None else devices
    mesh = jax.make_mesh((len(devices),), ("data",), (AxisType.Auto,), devices=devices)
    self._rows = NamedSharding(mesh, PartitionSpec(None, "data"))
    self._lanes = -(-num_lanes // mesh.size) * mesh.size
    self._reset = reset_at_newline
    share = self._lanes // mesh.size
    if scoring.runs_on(devices[0]) and hopper_byte_lm.fits(config, share, self._length):
      params = jax.jit(hopper_byte_lm.make_weights, static_argnums=1)(params, config)
      self._step = make_hopper_step(config, mesh)
    else:
      self._step = make_scoring_step(config)
    self._params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    self._past = jax.device_put(
      transformer.empty_past(config.transformer, self._lanes, config.dtype), self._rows
    )

  def __call__(
    self,
    documents: Sequence[np.ndarray],
    report: Callable[[int], None] = lambda num_bytes: None,
  ) -> list[np.ndarray]:
    """Scores documents.

    Args:
      documents: int [n] ids of each.
      report: called with the number of ids done, now and then.

    Returns:
      float32 [n] for each document: nats, of the predictions made at its ids.
    """
    lane, first, lengths = assign_lanes([len(d) for d in documents], self._lanes)
    placed: list[list[tuple[int, np.ndarray]]] = [[] for _ in lengths]
    for i, tokens in enumerate(documents):
      placed[lane[i]].append((first[i], tokens))
    readers = [self._read_lane(lane_documents) for lane_documents in placed]
    scores = self._score(readers, lengths, sum(map(len, documents)), report)
    return [scores[lane[i]][first[i] : first[i] + len(d)] for i, d in enumerate(documents)]

  def _read_lane(self, documents: Iterable[tuple[int, np.ndarray]]) -> Iterator[np.ndarray]:
    """Chunks int32 [3, S] of a lane, given its documents and where they begin."""
    size, start, segments = self._length, 0, 1  # 0 is between documents
    chunk = np.zeros((3, size), np.int32)
    for first, tokens in sorted(documents, key=lambda document: document[0]):
      segment, position = locate(tokens, self._reset)
      rows = np.stack([tokens, segment + segments, position])
      segments, done = rows[1].max(initial=segments) + 1, 0
      while done < len(tokens):
        while first + done >= start + size:
          yield chunk
          chunk, start = np.zeros_like(chunk), start + size
        here = first + done - start
        part = rows[:, done : done + size - here]
        chunk[:, here : here + part.shape[1]] = part
        done += part.shape[1]
    yield chunk

  def _score(self, readers, lengths, num_bytes, report) -> list[np.ndarray]:
    """Entropies float32 [n] of lanes, of so many `lengths`."""
    scores = [np.empty(length, np.float32) for length in lengths]
    starts = range(0, max(lengths), self._length)
    share = num_bytes / max(len(starts), 1)
    past, waiting = self._past, collections.deque[tuple[int, jax.Array]]()
    nothing = np.zeros((3, self._length), np.int32)
    for number, start in enumerate(starts):
      chunk = np.stack([next(reader, nothing) for reader in readers], axis=1)
      entropies, past = self._step(self._params, jax.device_put(chunk, self._rows), past)
      waiting.append((start, entropies))
      if len(waiting) > 2:  # the device always has the next chunk, and never many
        _store(scores, *waiting.popleft())
      report(round(share * (number + 1)) - round(share * number))
    for start, entropies in waiting:
      _store(scores, start, entropies)
    return scores


def _store(scores: Sequence[np.ndarray], start: int, entropies: jax.Array) -> None:
  """Copies entropies [lanes, S] of a chunk to where they belong."""
  for lane, row in zip(scores, np.asarray(entropies), strict=True):
    part = lane[start : start + len(row)]
    part[:] = row[: len(part)]


def make_scoring_step(config: ByteLMConfig) -> Callable[..., Any]:
  """Compiles one chunk of scoring.

  Returns:
    A function (params, rows int32 [3, B, S], past) -> (entropies float32 [B, S] in nats,
    past of what follows); rows are tokens, documents and positions.
  """
  model = ByteLM(config)

  @jax.jit
  def step(params: Any, rows: jax.Array, past: attention.Past) -> tuple[Any, Any]:
    tokens, documents, positions = rows
    with exact_products(config.dtype):
      logits, past = model.apply(
        {"params": params}, tokens, documents, positions, past, method=ByteLM.resume
      )
    return losses.entropy_nats(logits), past

  return step


def make_hopper_step(config: ByteLMConfig, mesh: jax.sharding.Mesh) -> Callable[..., Any]:
  """The same with kernels for GPUs, which share the rows along "data" of a mesh.

  Returns:
    A function as of `make_scoring_step`, but for its params: `hopper_byte_lm.Weights`.
  """

  def step(weights: Any, rows: jax.Array, past: attention.Past) -> tuple[Any, Any]:
    tokens, documents, positions = rows
    logits, past = hopper_byte_lm.resume(weights, config, tokens, documents, positions, past)
    return losses.entropy_nats(logits), past

  # The partitioner cannot split kernels.
  everywhere, rows = PartitionSpec(), PartitionSpec(None, "data")
  outputs = PartitionSpec("data"), rows
  inputs = everywhere, rows, rows
  return jax.jit(
    jax.shard_map(step, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False)
  )


def locate(tokens: np.ndarray, reset_at_newline: bool) -> tuple[np.ndarray, np.ndarray]:
  """What each byte of one document can see.

  Args:
    tokens: int [n].
    reset_at_newline: whether a newline byte ends the context.

  Returns:
    int32 [n] number of the byte's context, int32 [n] its position there.
  """
  position = np.arange(len(tokens), dtype=np.int32)
  if not reset_at_newline:
    return np.zeros_like(position), position
  starts = np.zeros(len(tokens), bool)
  starts[1:] = tokens[:-1] == tokenizer.NEWLINE_ID
  first = np.maximum.accumulate(np.where(starts, position, 0))
  return np.cumsum(starts, dtype=np.int32), position - first


def assign_lanes(
  lengths: Sequence[int], num_lanes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Deals documents out, the longest first, each to the lane that is shortest so far.

  Returns:
    The lane of each document, its first position there, the length of each lane.
  """
  lane, first = np.zeros(len(lengths), int), np.zeros(len(lengths), int)
  filled = np.zeros(num_lanes, int)
  for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
    lane[i] = filled.argmin()
    first[i] = filled[lane[i]]
    filled[lane[i]] += -(-lengths[i] // _ALIGNMENT) * _ALIGNMENT
  return lane, first, filled


def window_of(config: ByteLMConfig) -> int:
  """How many bytes the attention of an entropy model sees.

  Raises:
    ValueError: it sees all of them, so there is no end to what scoring must keep.
  """
  if config.transformer.window is None:
    raise ValueError(
      "Scoring documents needs an entropy model with an attention window: set "
      "config.model.transformer.window when training it."
    )
  return config.transformer.window
