"""Multiple choice while a model trains: by its forward step, in rows as training has them.

So it runs wherever training does, sharded and on several hosts, and needs no weights for
decoding. Answers are those of `decode.Scorer`.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from blt_jax import kinds
from blt_jax.data.reading.documents import Document
from blt_jax.data.whole_documents import count_excess
from blt_jax.decode.cursor import check_causal
from blt_jax.evals import suite
from blt_jax.evals.task import Choice
from blt_jax.parallel import sharding
from blt_jax.runs.feed import Feed
from blt_jax.training import steps

Answer = tuple[float, bool]


class _Scored(NamedTuple):
  """A context and a continuation as one document, and its ids that are scored."""

  document: dict[str, np.ndarray]
  ids: slice


def prepare(names: str, data: str, limit: int | None = None) -> list[suite.Prepared]:
  """Reads the tasks that are asked while a model trains.

  Args:
    names: of tasks, with commas between; "" for none.
    data: folder of their files, or "sample".
    limit: of rows of each; None for all.

  Raises:
    FileNotFoundError: a task has no file there.
    ValueError: as `suite.prepare`, or a task has more than continuations to be compared.
  """
  found = [name.strip() for name in names.split(",")] if names.strip() else []
  prepared = suite.prepare(found, data, limit, run_code=True) if found else []
  for task, _, asked in prepared:
    if not all(isinstance(request, Choice) for own in asked for request in own):
      raise ValueError(
        f"config.eval.tasks has {task.name!r}, for which a model must write, or read whole "
        "documents; while it trains, it can only be asked multiple choice. Leave that out; "
        f"`python -m blt_jax.evaluate --tasks={task.name}` asks it afterwards."
      )
  return prepared


class TasksInRows:
  """Asks a model's parameters the same tasks time and again, compiled once."""

  def __init__(
    self, prepared: Sequence[suite.Prepared], feed: Feed, model: nn.Module, mesh: Mesh
  ):
    """Patches and packs all texts.

    Args:
      prepared: of `prepare`.
      feed: of the run, which knows its rows.
      model: to ask.
      mesh: the devices.

    Raises:
      ValueError: the run's patches look ahead, so that they would tell of what is asked.
    """
    self._prepared, self._mesh = prepared, mesh
    if not prepared:
      return
    _check_causal(feed)
    scored = [_documents(feed, some) for some in prepared]
    # Documents of similar length fill rows best.
    flat = [one for some in scored for own in some for one in own]
    order = sorted(range(len(flat)), key=lambda i: -len(flat[i].document["tokens"]))
    alone = not _keeps_documents_apart(model.config)
    batches, places = feed.pack_whole([flat[i].document for i in order], alone)
    self._batches = batches
    where = dict(zip(order, places, strict=True))
    self._spans = [(where[i], one.ids) for i, one in enumerate(flat)]
    whole = model.clone(config=kinds.kind_of(model.config).unlimited(model.config))
    self._score = sharding.jit(
      functools.partial(steps.score, whole),
      mesh,
      out_shardings=NamedSharding(mesh, PartitionSpec()),  # every process needs all of them
    )

  def __call__(self, step: int, params: Any, scalars: Any = None) -> dict[str, float]:
    """Asks all tasks.

    Args:
      step: for messages.
      params: of the model.
      scalars: what else the model takes by name, as of `steps.predict`.

    Returns:
      `TASK/METRIC` of each metric of each task, and `TASK/METRIC_error`, the standard error of
      the one that the task is quoted by.
    """
    numbers: dict[str, float] = {}
    told = []
    for (task, items, _), answers in zip(
      self._prepared, self.answers(params, scalars), strict=True
    ):
      scores = [task.score(item, own) for item, own in zip(items, answers, strict=True)]
      summary = task.summarise(scores)
      numbers |= {f"{task.name}/{name}": float(x.value) for name, x in summary.items()}
      value, error = summary[task.metric]
      numbers[f"{task.name}/{task.metric}_error"] = float(error)
      told.append(f"{task.name} {task.metric} {value:.4f} (standard error {error:.4f})")
    if told:
      logging.info("Tasks at step %d: %s", step, ", ".join(told))
    return numbers

  def answers(self, params: Any, scalars: Any = None) -> list[list[list[list[Answer]]]]:
    """Of each task, item and request: nats of each continuation, and whether it is greedy's."""
    if not self._prepared:
      return []
    parts: list[Any] = []
    for batch in self._batches:
      parts.append(self._score(params, sharding.put_batch(batch, self._mesh), scalars))
      jax.block_until_ready(parts[-2:][0])  # batches do not pile up on the device
    found = self._gather(jax.device_get(parts))
    return [
      [[[next(found) for _ in r.continuations] for r in own] for own in asked]  # type: ignore
      for _, _, asked in self._prepared
    ]

  def _gather(self, parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> Iterator[Answer]:
    """Sums over what is scored, of arrays [B, S] of each batch."""
    for place, ids in self._spans:
      log_probs, is_best = (x[place.row] for x in parts[place.batch])
      slots = slice(place.start + ids.start - 1, place.start + ids.stop - 1)
      nats = log_probs[slots].sum(dtype=np.float64)
      yield float(nats), bool(is_best[slots].all())


def _check_causal(feed: Feed) -> None:
  """Raises ValueError where patches would tell of bytes to come."""
  try:
    check_causal(feed.patch.config)
  except ValueError as error:
    raise ValueError(f"config.eval.tasks cannot be asked of this model. {error}") from error


def _keeps_documents_apart(config: Any) -> bool:
  fields = [field.name for field in dataclasses.fields(config)]
  return all(getattr(config, name) for name in fields if name.endswith("document_masks"))


def _documents(feed: Feed, prepared: suite.Prepared) -> list[list[_Scored]]:
  """The documents of each request of a task; says how many items are cut."""
  found, num_cut = [], 0
  for own in prepared.asked:
    cut = 0
    for request in own:
      documents, dropped = _fit(feed, cast(Choice, request))  # as `prepare` has seen to
      found.append(documents)
      cut = max(cut, dropped)
    num_cut += cut > 0
  if num_cut:
    logging.warning(
      "%d of %d items of %s are longer than a row of training and lose their left ends.",
      num_cut,
      len(prepared.items),
      prepared.task.name,
    )
  return found


def _fit(feed: Feed, request: Choice) -> tuple[list[_Scored], int]:
  """Documents that fit into rows, and how many bytes all of them lose on the left for it."""
  context, dropped = request.context.encode(), 0
  texts = [context + end.encode() for end in request.continuations]
  while True:
    before = feed.patch.encode(context[dropped:])[:-1]  # without its EOS
    documents = [feed.patch(Document(text[dropped:])) for text in texts]
    excess = max(count_excess(d, feed.shape, feed.patch.sizes) for d in documents)
    if not excess:
      return [_Scored(d, _scored_ids(before, d["tokens"])) for d in documents], dropped
    dropped += excess


def _scored_ids(before: np.ndarray, tokens: np.ndarray) -> slice:
  """From the first id that the context [m] alone does not have, to the EOS of the text [n]."""
  overlap = min(len(before), len(tokens) - 1)
  start = int(np.cumprod(before[:overlap] == tokens[:overlap]).sum())
  return slice(start, len(tokens) - 1)
