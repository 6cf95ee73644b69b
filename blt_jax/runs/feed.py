"""The batches of a run, this process's rows of them: to learn from and to test on."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from blt_jax import config as settings
from blt_jax.data import pipeline, whole_documents, workers
from blt_jax.data.row_streams import RowStreams
from blt_jax.entropy import frequent_ngrams
from blt_jax.parallel import distributed, sharding
from blt_jax.parallel.host_share import host_share
from blt_jax.runs import completion, corpus, distillation, ngrams
from blt_jax.runs import patcher as patchers

# Of all streams: {"seed": int, "reading": str, "streams": {number: state}}.
State = dict[str, Any]


class Feed:
  """What `config.data` and `config.patching` say, opened.

  The rows of a batch come from `num_streams` independent streams of documents, each process
  runs its share of them; so batches do not depend on the number of processes.

  Attributes:
    shape: of a batch of all processes; where the device patches, with a slot for each byte,
      of which it gets those that it makes patches in.
    patch: what makes ids and patches of a document.
    calibration: see `patchers.Patcher`.
  """

  def __init__(self, config: ConfigDict, mesh: Mesh):
    """Opens the text and the patcher of settings as `resolve.resolve` gives them.

    Raises: as `corpus.open_corpus`, `patchers.load_patcher` and `host_share` do.
    """
    shape = settings.make_batch_shape(config)
    self._share = host_share(shape.batch_size, mesh)
    self._num_streams, self._num_slots = config.data.num_streams, shape.num_patches
    patcher = patchers.load_patcher(config.patching, corpus.stored_manifests(config.data))
    self.shape = patcher.shape_of_rows(shape)
    self.patch, self.calibration = patcher.rows(), patcher.calibration
    self._corpus = corpus.open_corpus(config.data)
    self._num_workers, self._seed = config.data.num_workers, config.seed
    is_stream = isinstance(self._corpus.stream(self._seed), grain.IterDataset)
    self._reading = (
      f"{self._num_workers} workers, " * is_stream + f"{self._num_streams} streams"
    )
    tables = frequent_ngrams.to_tables(ngrams.find(config).values())
    self._complete = completion.make(tables, config.model)
    self._add_pieces = distillation.look_up(config)
    self._mesh = mesh
    self._batches: grain.DatasetIterator | None = None

  def training_batches(self, step: int = 0, state: State | None = None) -> Iterator[Any]:
    """Batches on the devices, made ahead.

    Args:
      step: updates done.
      state: of a checkpoint, to go on with the very next batch. With another number of
        streams, or of workers that read text which has no random access, nobody knows where
        they are: documents are shuffled anew.

    Raises:
      ValueError: updates were done, and `state` does not say where the text goes on.
    """
    if step and not _is_state(state):
      raise ValueError(
        f"The checkpoint of step {step} does not say where its text goes on, so it would start "
        "anew: choose another config.workdir, or move the checkpoint away to go on from the "
        "one before."
      )
    is_known = state is not None and self._reads_as(state)
    if state is not None:
      self._seed = (state["seed"] + (0 if is_known else step)) % 2**32
    self._batches = pipeline.prefetch(RowStreams(self._streams()), self._put)
    if state is not None and is_known:
      self._batches.set_state(state["streams"])
    if self._num_workers:
      with workers.unsignalled():
        self._batches.start_prefetch()
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
    for batch in pipeline.evaluation_batches(documents, self.patch, self.shape):
      yield self._limit_slots(self._own_rows(batch))

  def pack_whole(
    self, documents: Sequence[dict[str, np.ndarray]], alone: bool = False
  ) -> tuple[list[pipeline.Batch], list[whole_documents.Place]]:
    """Batches of documents none of which is cut, on the host; see `whole_documents.pack`.

    Returns:
      This process's rows of each batch, and where all documents stand in whole batches.
    """
    sizes = self.patch.sizes
    batches, places = whole_documents.pack(documents, self.shape, sizes, alone)
    return [self._own_rows(batch) for batch in batches], places

  def _own_rows(self, batch: pipeline.Batch) -> pipeline.Batch:
    return self._complete({k: v[self._share.rows] for k, v in batch.items()})

  def _put(self, batch: pipeline.Batch) -> Any:
    batch = self._limit_slots(self._add_pieces(self._complete(batch)))
    return sharding.put_batch(batch, self._mesh)

  def _limit_slots(self, batch: pipeline.Batch) -> pipeline.Batch:
    return batch | {"patch_lengths": batch["patch_lengths"][..., : self._num_slots]}

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
    shape = dataclasses.replace(self.shape, batch_size=self.shape.batch_size // count)
    return {
      i: pipeline.training_batches(
        self._corpus.stream(self._seed, i, count), self.patch, shape, self._num_workers
      )
      for i in self._share.streams(count)
    }


def _is_state(state: State | None) -> bool:
  """Whether it has what a `Feed` saves."""
  if not isinstance(state, dict):
    return False
  return isinstance(state.get("seed"), int) and isinstance(state.get("streams"), dict)
