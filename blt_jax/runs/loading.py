"""A run as generation needs it."""

import dataclasses
import os
from typing import Any

from ml_collections import ConfigDict

from blt_jax import kinds
from blt_jax.decode import language_model
from blt_jax.decode.table import TableSource
from blt_jax.entropy.table import TableModel, is_table
from blt_jax.runs import checkpoint, corpus, folder, ngrams, resolve
from blt_jax.runs import patcher as patchers

HEAD, OWN = "head", "own"  # in place of the folder of an entropy model
HEAD_THRESHOLD = 0.0  # log odds


def load_language_model(
  workdir: str | os.PathLike,
  entropy_model: str | None = None,
  threshold: float | None = None,
  step: checkpoint.Step = None,
  cumulative: bool = False,
) -> language_model.LanguageModel:
  """What generation needs of a run: the model, patching and entropy model included.

  Args:
    workdir: folder of the run.
    entropy_model: what says where patches end, as for `load_patcher`.
    threshold: likewise.
    step: which checkpoint of the run, as for `checkpoint.find_step`.
    cumulative: as for `load_patcher`.

  Raises:
    FileNotFoundError: there is no run, no such checkpoint, or its entropy model is missing.
    ValueError: as `runs.load_run` and `patchers.load_patcher`, or what is given has no use.
  """
  run = folder.load_run(workdir, step)
  check_pieces(run.config)
  kind = kinds.kind_of(run.model.config)
  tables = ngrams.load(workdir, run.config.model)
  options: dict[str, Any] = {"ngram_tables": tables} if tables else {}
  if not kind.patched:
    _check_unused(f"{workdir} reads no patches", entropy_model, threshold, cumulative)
    pieces = patchers.load_patcher(run.config.patching).pieces if kind.reads_pieces else None
    return dataclasses.replace(kind.reader(run.model, run.params, **options), pieces=pieces)
  patcher = load_patcher(
    run.config.patching, workdir, entropy_model, threshold, cumulative=cumulative
  )
  model = patcher.entropy_model
  if patcher.patched_by == OWN:
    kinds.own_patched(run.model.config)  # raises where it cannot
  if patcher.patched_by != "source":
    options["patched_by"] = patcher.patched_by
  if isinstance(model, TableModel):
    source = TableSource(model), model.jax_tables()
    return kind.reader(run.model, run.params, patcher.config, source=source, **options)
  return kind.reader(run.model, run.params, patcher.config, model, **options)


def check_pieces(config: ConfigDict) -> None:
  """Raises ValueError where the ids of a run are pieces of a tokenizer of somebody else's.

  That is so of a converted Llama: other ids in their place would give numbers without meaning.
  """
  reads_pieces = kinds.find_kind(config.model.kind).reads_pieces
  if reads_pieces and config.patching.get("tokenizer_digest") is None:
    raise ValueError(
      f"The ids of {config.workdir} are pieces of a tokenizer that nothing here reads text "
      "with, as those of a converted Llama. It is a start for others: docs/weights.md."
    )


def load_patcher(
  section: ConfigDict,
  workdir: str | os.PathLike,
  entropy_model: str | None = None,
  threshold: float | None = None,
  data: str | None = None,
  cumulative: bool = False,
) -> patchers.Patcher:
  """The patching of a run, for text that it may not have seen.

  Args:
    section: `config.patching` of the run.
    workdir: its folder, for messages.
    entropy_model: folder of an entropy model's run or of a table, instead of the one trained
      with; or `HEAD` for the boundary head of the run itself, `OWN` for its own entropies.
    threshold: nats, likewise; of a head log odds, 0 by default.
    cumulative: whether the threshold is one of the cumulative rule, instead of the run's rule.
    data: path of the text, which may bring entropies that were stored; None for other text.

  Raises:
    FileNotFoundError: the entropy model is missing.
    ValueError: as `patchers.load_patcher`, or what is given has no use.
  """
  given = entropy_model, threshold, cumulative
  if section.scheme != "entropy":
    _check_unused(f"The patching of {workdir} is {section.scheme!r}", *given)
  if entropy_model == HEAD:
    if cumulative:
      raise ValueError("A boundary head sums nothing up: leave --cumulative out.")
    threshold = HEAD_THRESHOLD if threshold is None else threshold
  if cumulative:
    if threshold is None:
      raise ValueError("--cumulative is another rule than the run's: give its --threshold too.")
    section = resolve.changed(section, cumulative=True, monotonic=False, threshold_add=None)
  if entropy_model:
    entropies = "device" if section.entropies == "device" else "model"
    if entropy_model in (HEAD, OWN):
      entropies = entropy_model
    elif is_table(entropy_model):
      entropies = "table"
    section = resolve.changed(
      section, entropy_model=entropy_model, entropies=entropies, entropy_digest=None
    )
  if threshold is not None:
    section = resolve.changed(section, threshold=threshold)
  stored = []
  if data is not None and (manifest := corpus.find_manifest(data)) is not None:
    _check_stored(section, workdir, data)
    stored = [(data, manifest)]
    section = resolve.resolve_patching(resolve.changed(section, entropies="stored"), stored)
  try:
    return patchers.load_patcher(section, stored)
  except (FileNotFoundError, ValueError) as error:
    if section.scheme != "entropy":
      raise
    kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
    raise kind(
      f"{error} Other values of entropy_model and threshold may be given in place of those "
      f"that {workdir} was trained with."
    ) from error


def _check_stored(section: ConfigDict, workdir: str | os.PathLike, data: str) -> None:
  """Raises ValueError where stored entropies would go unused."""
  if section.entropies in ("device", HEAD, OWN):
    raise ValueError(
      f"{data} holds stored entropies, and {workdir} finds patches on the device; give the "
      "text that they were made of."
    )


def _check_unused(what, entropy_model, threshold, cumulative):
  if entropy_model or threshold is not None or cumulative:
    raise ValueError(f"{what}, so an entropy model or a threshold would do nothing; omit it.")
