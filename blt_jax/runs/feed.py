"""The batches of a run, this process's rows of them: to learn from and to test on."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import grain
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from blt_jax import config as settings
from blt_jax.data import pipeline
from blt_jax.data.row_streams import RowStreams
from blt_jax.parallel import distributed, sharding
from blt_jax.parallel.host_share import host_share
from blt_jax.runs import corpus, folder
from blt_jax.runs import patcher as patchers

# Of all streams: {"seed": int, "reading": str, "streams": {number: state}}.
State = dict[str, Any]


class Feed:
  """What `config.data` and `config.patching` say, opened.

  The rows of a batch come from `num_streams` independent streams of documents, each process
  runs its share of them; so batches do not depend on the number of processes.
  """

  def __init__(self, config: ConfigDict, mesh: Mesh):
    """Opens the text and the patcher; sets what the config leaves open.

    That is `config.data.num_streams`, and the threshold: as the run began, else as
    calibration found it.

    Raises: as `corpus.open_corpus`, `patchers.load_patcher` and `host_share` do, and
      ValueError: the streams do not divide among processes and rows.
    """
    self._shape = settings.make_batch_shape(config)
    self._share = host_share(self._shape.batch_size, mesh)
    self._num_streams = _count_streams(config, self._share.count)
    _keep_threshold(config)
    patcher = patchers.load_patcher(config.patching, corpus.stored_manifests(config.data))
    self._patch = patcher.documents()
    self._corpus = corpus.open_corpus(config.data)
    self._num_workers, self._seed = config.data.num_workers, config.seed
    is_stream = isinstance(self._corpus.stream(self._seed), grain.IterDataset)
    self._reading = (
      f"{self._num_workers} workers, " * is_stream + f"{self._num_streams} streams"
    )
    self._put = functools.partial(sharding.put_batch, mesh=mesh)
    self._batches: grain.DatasetIterator | None = None
    config.data.num_streams = self._num_streams
    if patcher.config.scheme == "entropy":
      config.patching.threshold = patcher.config.threshold

  def training_batches(self, step: int = 0, state: State | None = None) -> Iterator[Any]:
    """Batches on the devices, made ahead.

    Args:
      step: updates done.
      state: of a checkpoint, to go on with the very next batch. With another number of
        streams, or of workers that read text which has no random access, nobody knows where
        they are: documents are shuffled anew.
    """
    is_known = state is not None and self._reads_as(state)
    if state is not None:
      self._seed = (state["seed"] + (0 if is_known else step)) % 2**32
    self._batches = pipeline.prefetch(RowStreams(self._streams()), self._put)
    if state is not None and is_known:
      self._batches.set_state(state["streams"])
    return self._batches

  def _reads_as(self, state: State) -> bool:
    """Whether places in the text mean the same as in a checkpoint."""
    began_with = state.get("reading", f"{len(state['streams'])} streams")
    if began_with != self._reading:
      logging.warning(
        "The checkpoint has %s of documents and this run %s: documents are shuffled anew. Set "
        "config.data.num_streams and num_workers to the former to go on in their order.",
        began_with,
        self._reading,
      )
    return began_with == self._reading

  def heldout_batches(self) -> Iterator[pipeline.Batch]:
    """One pass over the held-out documents, on the host."""
    documents = self._corpus.test_documents()
    for batch in pipeline.evaluation_batches(documents, self._patch, self._shape):
      yield {k: v[self._share.rows] for k, v in batch.items()}

  def state(self) -> State:
    """Where all streams are; all processes ask together."""
    assert self._batches is not None
    parts = distributed.gather(self._batches.get_state())
    streams = {number: state for part in parts for number, state in part.items()}
    return {"seed": self._seed, "reading": self._reading, "streams": streams}

  def close(self) -> None:
    """Ends worker processes and threads."""
    if self._batches is not None:
      self._batches.close()

  def _streams(self):
    count = self._num_streams
    shape = dataclasses.replace(self._shape, batch_size=self._shape.batch_size // count)
    return {
      i: pipeline.training_batches(
        self._corpus.stream(self._seed, i, count), self._patch, shape, self._num_workers
      )
      for i in self._share.streams(count)
    }


def _keep_threshold(config: ConfigDict) -> None:
  """A run that goes on keeps its threshold, whatever calibration found since."""
  section, began_with = config.patching, folder.find_section(config.workdir, "patching")
  names = "scheme", "patch_size", *patchers.RULE
  is_same = section.entropy_model in ("", began_with.get("entropy_model"))
  is_same = is_same and all(began_with.get(name, "") == section[name] for name in names)
  if section.threshold is None and is_same:
    section.threshold = began_with.get("threshold")


def _count_streams(config: ConfigDict, num_shares: int) -> int:
  """As the config says, else as the run began, else one for each share of a batch."""
  batch_size, count = config.data.batch_size, config.data.num_streams
  if count is None:
    began_with = folder.find_section(config.workdir, "data").get("num_streams") or num_shares
    fits = not began_with % num_shares and not batch_size % began_with
    return began_with if fits else num_shares
  if count < 1 or count % num_shares or batch_size % count:
    raise ValueError(
      f"config.data.num_streams {count} must be a multiple of the {num_shares} processes that "
      f"share a batch, and divide config.data.batch_size {batch_size}."
    )
  return count
