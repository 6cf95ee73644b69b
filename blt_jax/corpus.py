"""The text of a run, from `config.data`: training and held-out documents."""

from collections.abc import Sequence
from typing import NamedTuple

import grain
import jax
from ml_collections import ConfigDict

from blt_jax.data import mixture, scored, sources
from blt_jax.data.documents import Dataset, Skipped, SourceOptions


class Corpus(NamedTuple):
  """Documents to learn from, endless and shuffled, and documents to test on, in order."""

  train: Dataset
  heldout: Dataset


def open_corpus(data: ConfigDict, seed: int) -> Corpus:
  """Opens the text of a run; each host gets its share of the training documents.

  Args:
    data: `config.data`.
    seed: of the order of training documents.

  Raises:
    FileNotFoundError: a path is missing.
    ValueError: bad input, or too little text to hold some out.
  """
  options = source_options(data)
  parts, heldout = {}, {}
  for name, (path, weight) in _parts(data).items():
    skipped = Skipped(name if data.mixture else "")
    if data.heldout_path:
      train = sources.open_source(path, options, skipped)
    else:
      train, held = sources.open_split(path, "", data.heldout_fraction, options, skipped)
      heldout[name] = held, 1.0
    parts[name] = train, weight
  if data.heldout_path:
    heldout["heldout"] = sources.open_source(data.heldout_path, options), 1.0
  host = (jax.process_index(), jax.process_count())
  return Corpus(
    mixture.mix(parts, seed, data.shuffle_window, host=host),
    mixture.mix(heldout, seed=None, num_epochs=1),
  )


def stored_manifests(data: ConfigDict) -> list[scored.Manifest | None]:
  """What made the entropies stored with each source; None for plain text."""
  paths = [path for path, _ in _parts(data).values()]
  return [scored.load_manifest(p) if scored.is_scored(p) else None for p in paths]


def open_all(path: str, data: ConfigDict) -> Dataset:
  """All documents of a path in order, read as `config.data` says."""
  dataset = sources.open_source(path, source_options(data))
  return mixture.mix({path: (dataset, 1.0)}, seed=None, num_epochs=1)


def source_options(data: ConfigDict) -> SourceOptions:
  """How `config.data` says that files are read."""
  names = ("text_field", "on_error", "invalid_utf8", "max_document_bytes")
  return SourceOptions(**{name: data[name] for name in names})


def _parts(data: ConfigDict) -> dict[str, Sequence]:
  """Name -> path and weight."""
  return data.mixture.to_dict() or {"text": (data.path, 1.0)}
