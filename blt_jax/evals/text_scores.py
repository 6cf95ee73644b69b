"""Bits per byte of text: a model's predictions, added up document by document."""

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from blt_jax.data import pipeline, windows
from blt_jax.data.pipeline import Batch, BatchShape
from blt_jax.data.reading.documents import Document
from blt_jax.data.transforms import PatchDocument
from blt_jax.evals import text_sources
from blt_jax.evals.statistics import Statistic, interval
from blt_jax.evals.text_sources import Source
from blt_jax.parallel import sharding
from blt_jax.training import steps

MISSING = "(none)"  # the value of a field where a row has none
_MOST_DRAWN = 10_000  # documents of a bootstrap; of more, some are drawn together

Report = Callable[[str, int, int | None], None]  # what is done, its bytes, all of them


@dataclasses.dataclass(frozen=True)
class Scores:
  """What was found of some documents.

  Attributes:
    sums: of all, as of `steps.sums`.
    nats: float64 [n], cross entropy of each document, its end included.
    bytes: int64 [n], those that were predicted.
    end_nats: float64 [n], what of `nats` is of no byte but of the end.
    values: field -> its value in the row of each document.
  """

  sums: Mapping[str, float]
  nats: np.ndarray
  bytes: np.ndarray
  end_nats: np.ndarray
  values: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)

  @property
  def bits_per_byte(self) -> float:
    """Of all documents together."""
    return _per_byte(np.array([self.nats.sum(), self.bytes.sum()]), len(self.nats))

  @property
  def bits_per_dimension(self) -> float:
    """Of the bytes alone, without the ends of documents."""
    return _per_byte(np.array([(self.nats - self.end_nats).sum(), self.bytes.sum()]), 0)

  def interval(self) -> tuple[float, float] | None:
    """95 % of `bits_per_byte` by bootstrap over documents; None of a single one."""
    if len(self.nats) < 2:
      return None
    columns = np.stack([self.nats, self.bytes], axis=1)
    if len(columns) > _MOST_DRAWN:
      together = np.arange(len(columns)) % _MOST_DRAWN
      columns = np.stack([np.bincount(together, column) for column in columns.T], axis=1)
    return interval(Statistic(columns, _per_byte).resample())

  def by(self, field: str) -> dict[str, "Scores"]:
    """Value of a field -> what was found of the documents that have it, without sums."""
    values = np.array(self.values[field], object)
    chosen = {value: values == value for value in sorted(set(values))}
    return {
      v: Scores({}, self.nats[c], self.bytes[c], self.end_nats[c]) for v, c in chosen.items()
    }


def join(scores: Sequence[Scores]) -> Scores:
  """Those of several sources together."""
  names = {name for one in scores for name in one.sums}
  values = {f: [v for one in scores for v in one.values[f]] for f in scores[0].values}
  return Scores(
    {name: sum(one.sums.get(name, 0) for one in scores) for name in names},
    np.concatenate([one.nats for one in scores]),
    np.concatenate([one.bytes for one in scores]),
    np.concatenate([one.end_nats for one in scores]),
    values,
  )


def _per_byte(sums: np.ndarray, _: int) -> float:
  return float(sums[0] / math.log(2) / max(sums[1], 1))


@dataclasses.dataclass(frozen=True)
class TextScorer:
  """A model that scores batches of rows.

  Attributes:
    model: the module.
    params: its parameters, on all devices.
    mesh: the devices, which share the rows.
    shape: of the batches.
    look_up: adds what the model reads to a batch.
    step: the compiled `steps.score_targets`: (params, batch, named) -> sums, nats, bytes.
    named: what else the model takes by name, as of `steps.predict`.
  """

  model: nn.Module
  params: Any
  mesh: Mesh
  shape: BatchShape
  look_up: Callable[[Batch], Batch]
  step: Callable[..., Any]
  named: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @classmethod
  def make(
    cls,
    model: nn.Module,
    params: Any,
    mesh: Mesh,
    shape: BatchShape,
    look_up: Callable[[Batch], Batch],
    named: Mapping[str, Any] | None = None,
    score: Callable[..., Any] = steps.score_targets,
  ) -> "TextScorer":
    """Gives all devices as many rows, `shape.batch_size` together or more.

    `score` is `steps.score_targets`, or gives something else of each target in place of nats.
    """
    rows = -(-shape.batch_size // mesh.size) * mesh.size
    placed = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    step = sharding.jit(functools.partial(score, model), mesh)
    shape = dataclasses.replace(shape, batch_size=rows)
    return cls(model, placed, mesh, shape, look_up, step, named or {})

  def windowed(self, longest: int, context: int) -> "TextScorer":
    """The same for rows that hold windows of `windows.window_batches`.

    Args:
      longest: bytes of the longest document.
      context: bytes before a prediction.

    Raises:
      ValueError: the model reads no rows of this length.
    """
    shape, size = self.shape, min(context, longest) + 1  # a BOS
    length = windows.row_length(size, shape.row_multiple)
    try:
      tokens = np.zeros((1, length), np.int32)
      names = "tokens", "patch_lengths", "patch_levels"
      batch = self.look_up(dict.fromkeys(names, tokens))
      predict = functools.partial(steps.predict, self.model)
      jax.eval_shape(predict, self.params, batch, self.named)
    except ValueError as error:
      raise ValueError(
        f"--context={context} needs rows of {length} ids for documents of up to {longest} "
        f"bytes; give less: {error}"
      ) from error
    rows = max(shape.batch_size * shape.seq_len // length // self.mesh.size, 1)
    return dataclasses.replace(
      self,
      shape=dataclasses.replace(shape, seq_len=length, batch_size=rows * self.mesh.size),
    )

  def __call__(
    self, batches: Iterable[Batch]
  ) -> Iterator[tuple[dict[str, float], np.ndarray, np.ndarray]]:
    """Scores batches, the next one already on its way while one is read.

    Yields:
      Of each batch `steps.sums`; float32 [n] nats and int32 [n] bytes of its n targets, in the
      order of rows.
    """
    waiting = None
    for batch in batches:
      batch = self.look_up(batch)
      found = self.step(self.params, sharding.put_batch(batch, self.mesh), self.named)
      if waiting is not None:
        yield _fetch(*waiting)
      waiting = batch["loss_mask"], found
    if waiting is not None:
      yield _fetch(*waiting)


def _fetch(mask: np.ndarray, found: Any) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
  sums, nats, sizes = jax.device_get(found)
  return {k: float(v) for k, v in sums.items()}, nats[mask], sizes[mask]


class _ByDocument:
  """Takes the targets of documents in their order, and adds them up document by document."""

  def __init__(self, patch: PatchDocument, fields: Sequence[str]):
    self.sizes, self.is_slow = patch.sizes, patch.is_slow  # the packer asks for them
    self._patch = patch
    self._values: dict[str, list[str]] = {name: [] for name in fields}
    self._waiting = collections.deque[int]()  # targets of documents to come
    self._left = 0  # targets of the last one
    self._nats: list[float] = []
    self._bytes: list[int] = []
    self._end_nats: list[float] = []

  def ids(self, document: Document) -> dict[str, np.ndarray]:
    """Ids of the next document, which is noted, as `PatchDocument.ids`."""
    ids = self._patch.ids(document)
    mask = ids.get("loss_mask")
    self._waiting.append(len(ids["tokens"]) - 1 if mask is None else int(mask.sum()))
    for name, values in self._values.items():
      value = text_sources.value_of(document.row or {}, name)
      values.append(MISSING if value is None else value)
    return ids

  def __call__(self, document: Document) -> dict[str, np.ndarray]:
    """Encodes the next document, and patches it; see `PatchDocument`."""
    ids = self.ids(document)
    return ids | self._patch.patch(ids["tokens"], document.entropies)

  def add(self, nats: np.ndarray, sizes: np.ndarray) -> None:
    """Takes nats [n] and bytes [n] of the next targets."""
    start = 0
    while start < len(nats):
      if not self._left:
        self._left = self._waiting.popleft()
        self._nats.append(0.0)
        self._bytes.append(0)
        self._end_nats.append(0.0)
      stop = min(start + self._left, len(nats))
      some, bytes_of = nats[start:stop].astype(np.float64), sizes[start:stop]
      self._nats[-1] += float(some.sum())
      self._bytes[-1] += int(bytes_of.sum())
      self._end_nats[-1] += float(some[bytes_of == 0].sum())
      self._left -= stop - start
      start = stop

  def scores(self, sums: Mapping[str, float]) -> Scores:
    """What was found of documents that had a target."""
    values = {name: found[: len(self._nats)] for name, found in self._values.items()}
    counts = np.array(self._bytes, np.int64)
    return Scores(sums, np.array(self._nats), counts, np.array(self._end_nats), values)


def score_all(
  sources: Mapping[str, tuple[Source, PatchDocument]],
  scorer: TextScorer,
  context: int | None = None,
  max_batches: int | None = None,
  report: Report = lambda name, done, total: None,
) -> dict[str, Scores]:
  """Scores the documents of sources; all are looked through before one is scored.

  Args:
    sources: by name, each with what patches its documents.
    scorer: the model.
    context: the most bytes before a prediction; None for what there is in the run's rows.
    max_batches: look at so many of each only; None for all.
    report: told how far it is.

  Raises:
    ValueError: no row of any source has a field that is asked for, or there is no such context.
  """
  most = math.inf
  if max_batches is not None:
    most = max_batches * scorer.shape.batch_size * scorer.shape.seq_len
  sizes = {}
  for name, (source, patch) in sources.items():
    if context is not None:
      windows.check_context(context, patch.sizes)
    sizes[name] = source.measure(most, functools.partial(_report_reading, report, name))
  lacking = [size.lacking for size in sizes.values()]
  for field, message in lacking[0].items():
    if all(field in others for others in lacking):
      raise ValueError(message)
  longest = max(size.longest for size in sizes.values())
  if context is not None:
    scorer = scorer.windowed(longest, context)
  found = {}
  for name, (source, patch) in sources.items():
    total = int(min(sizes[name].bytes, most))
    found[name] = _score(source, patch, scorer, context, max_batches, total, report)
  return found


def _report_reading(report: Report, name: str, done: int) -> None:
  report(f"{name}, reading", done, None)


def _score(
  source: Source,
  patch: PatchDocument,
  scorer: TextScorer,
  context: int | None,
  max_batches: int | None,
  total: int,
  report: Report,
) -> Scores:
  """See `score_all`; there are `total` bytes to score."""
  by_document = _ByDocument(patch, source.options.fields)
  if context is None:
    batches = pipeline.evaluation_batches(source.documents, by_document, scorer.shape)
  else:
    ids = map(by_document.ids, source.read())
    batches = windows.window_batches(ids, patch, scorer.shape, context)
  sums, done = collections.Counter[str](), 0
  report(source.name, 0, total)
  for found, nats, sizes in scorer(itertools.islice(batches, max_batches)):
    sums.update(found)
    by_document.add(nats, sizes)
    done += int(sizes.sum())
    report(source.name, done, total)
  return by_document.scores(sums)
