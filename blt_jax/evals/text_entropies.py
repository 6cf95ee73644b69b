"""Entropies of documents by a BLT itself: of its own predictions, under its patches."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from blt_jax import config as settings
from blt_jax import kinds, tokenizer
from blt_jax.data import windows
from blt_jax.data.pipeline import BatchShape
from blt_jax.data.reading.documents import Document
from blt_jax.entropy.neural import BatchScorer
from blt_jax.entropy.table import TableModel
from blt_jax.evals.text_scores import TextScorer
from blt_jax.parallel import sharding
from blt_jax.patching import PatchingConfig
from blt_jax.runs import completion, device_entropies, folder, ngrams
from blt_jax.runs.patcher import Patcher
from blt_jax.training import steps


def check(rule: PatchingConfig) -> None:
  """Raises ValueError where patches, and so entropies under them, tell of bytes to come."""
  if rule.is_top_k or rule.scheme == "bpe":
    kind = "top-k" if rule.is_top_k else "bpe"
    raise ValueError(
      f"The {kind} patches of the run depend on bytes to come, so entropies under them would "
      "tell of these: give a --threshold in place of top-k patches, or another run."
    )


class BLTScorer:
  """Gives the entropies of many documents at once, by a BLT that reads them in windows."""

  def __init__(
    self, run: folder.Run, patcher: Patcher, context: int | None = None, rows: int | None = None
  ):
    """Takes a model and how it is patched.

    Args:
      run: of the BLT.
      patcher: of the run.
      context: the most bytes that a prediction sees; None for as many as fit the run's rows.
      rows: windows that are read side by side; None for as many as the run's batches have rows.

    Raises:
      ValueError: there is no such context, or it cuts pictures; or patches depend on bytes to
        come.
    """
    check(patcher.config)
    if run.config.model.get("pixel_ngrams") and context is not None:
      raise ValueError(
        "--context cuts pictures, and n-grams of pixels need whole ones; omit it."
      )
    shape, mesh = settings.make_batch_shape(run.config), sharding.make_mesh()
    self.context = shape.seq_len - 1 if context is None else context
    windows.check_context(self.context, None)
    self._patcher, self._patch = patcher, patcher.rows()
    tables = ngrams.load(run.config.workdir, run.config.model)
    whole = kinds.read_all(run.model)
    model, named = device_entropies.attach_loaded(whole, patcher, mesh, tables)
    complete = completion.make(tables, run.config.model)
    scorer = TextScorer.make(
      model, run.params, mesh, shape, complete, named, steps.score_entropies
    ).windowed(self.context, self.context)
    rows = -(-(rows or shape.batch_size) // mesh.size) * mesh.size
    shape = dataclasses.replace(scorer.shape, batch_size=rows)
    self._scorer = dataclasses.replace(scorer, shape=shape)

  @property
  def shape(self) -> BatchShape:
    """Of the batches."""
    return self._scorer.shape

  def __call__(
    self,
    documents: Sequence[Document],
    report: Callable[[int], None] = lambda num_bytes: None,
  ) -> list[np.ndarray]:
    """Scores documents, by the patches of the entropies that they bring, if they do.

    Args:
      documents: to score.
      report: called with the number of ids done, now and then.

    Returns:
      float32 [n] for each document: nats, of the predictions made at its ids; 0 at the last
      one, its EOS, where nothing is predicted.
    """
    ids = [tokenizer.encode(document.text) for document in documents]
    whole = [{"tokens": tokens} for tokens in ids]
    for fields, given in zip(whole, self._measure(documents, ids), strict=True):
      fields |= {} if given is None else {"entropies": given}
    found = []
    batches = windows.window_batches(whole, self._patch, self.shape, self.context)
    for _, entropies, _ in self._scorer(batches):
      found.append(entropies)
      report(len(entropies))
    ends = np.cumsum([len(tokens) - 1 for tokens in ids])[:-1]
    return [np.pad(own, (0, 1)) for own in np.split(np.concatenate(found), ends)]

  def _measure(
    self, documents: Sequence[Document], ids: Sequence[np.ndarray]
  ) -> Sequence[np.ndarray | None]:
    """Of each document the entropies [n] by which the BLT is patched; None: it needs none."""
    model = self._patcher.entropy_model
    if self._patcher.on_device or self._patcher.config.scheme != "entropy":
      return [None] * len(ids)
    if documents[0].entropies is not None:
      return [document.entropies for document in documents]
    if isinstance(model, TableModel):
      return [model(tokens) for tokens in ids]
    return self._source(ids)

  @functools.cached_property
  def _source(self) -> BatchScorer:
    """The entropy model by which the BLT is patched."""
    model = self._patcher.entropy_model
    assert isinstance(model, folder.EntropyModel)  # as `loading.load_patcher` has seen to
    return BatchScorer(*model, self._patcher.config.reset_at_newline)
