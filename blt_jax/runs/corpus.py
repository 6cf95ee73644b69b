"""The text of a run, from `config.data`: training and held-out documents."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

from ml_collections import ConfigDict

from blt_jax import patching
from blt_jax.data import mixture
from blt_jax.data import template as templates
from blt_jax.data.reading import heldout, pictures, scored, sources
from blt_jax.data.reading.documents import Dataset, Policy, Skipped, SourceOptions

Parts: TypeAlias = dict[str, tuple[Dataset, float]]


class Corpus(NamedTuple):
  """The sources of a run: name -> documents and weight."""

  train: Parts
  heldout: Parts
  shuffle_window: int

  def stream(self, seed: int, index: int = 0, count: int = 1) -> Dataset:
    """Documents to learn from, endless and shuffled: one of `count` disjoint streams."""
    return mixture.mix(self.train, seed, self.shuffle_window, host=(index, count))

  def once(self, seed: int) -> Iterator[tuple[Dataset, float]]:
    """Of each source, its documents to learn from once, shuffled, and its share by weight."""
    total = sum(weight for _, weight in self.train.values())
    for name, (dataset, weight) in self.train.items():
      part = {name: (dataset, 1.0)}
      yield mixture.mix(part, seed, self.shuffle_window, num_epochs=1), weight / total

  def test_documents(self) -> Dataset:
    """Documents to test on, once and in order."""
    return mixture.mix(self.heldout, seed=None, num_epochs=1)


def open_corpus(data: ConfigDict) -> Corpus:
  """Opens the text of a run, `config.data`.

  Raises:
    FileNotFoundError: a path is missing.
    ValueError: bad input, or too little text to hold some out.
  """
  return Corpus(*open_parts(data), data.shuffle_window)


def salt_of(data: ConfigDict) -> str:
  """What divides training and held-out text; runs of before there was a salt have none."""
  salt = data.get("heldout_salt", heldout.NO_SALT)
  return heldout.SALT if salt is None else salt


def open_parts(data: ConfigDict, options: SourceOptions | None = None) -> tuple[Parts, Parts]:
  """Opens the sources of (training, held-out) text: name -> documents and weight.

  Args:
    data: `config.data`.
    options: how files are read, if not as `config.data` says.
  """
  options, salt = options or source_options(data), salt_of(data)
  parts, tests = {}, {}
  for name, (path, weight) in _parts(data).items():
    skipped = Skipped(name if data.mixture else "")
    if data.heldout_path:
      train = sources.open_source(path, options, skipped)
    else:
      train, held = sources.open_split(path, data.heldout_fraction, options, skipped, salt)
      tests[name] = held, 1.0
    parts[name] = train, weight
  if data.heldout_path:
    tests["heldout"] = sources.open_source(data.heldout_path, options), 1.0
  return parts, tests


def stored_manifests(data: ConfigDict) -> list[tuple[str, scored.Manifest | None]]:
  """The path of each source, and what made the entropies stored there, if any are."""
  return [(path, find_manifest(path)) for path, _ in _parts(data).values()]


def open_heldout(data: ConfigDict, options: SourceOptions) -> dict[str, tuple[str, Dataset]]:
  """Opens held-out text, read as options say: name -> path and documents of each source."""
  found = open_parts(data, options)[1]
  if data.heldout_path:
    paths = {"heldout": data.heldout_path}
  else:
    paths = {name: path for name, (path, _) in _parts(data).items()}
  return {name: (path, found[name][0]) for name, path in paths.items()}


def find_picture_size(data: ConfigDict) -> tuple[int, ...]:
  """Height, width and channels of the first picture of `config.data`.

  Raises:
    FileNotFoundError: nothing is there.
    ValueError: there is no picture, or stored entropies, which do not tell its size.
  """
  path = next(iter(_parts(data).values()))[0]
  if scored.is_scored(path):
    raise ValueError(
      f"{path} holds pictures with their entropies, which do not tell height and width: give "
      "config.data.picture_size."
    )
  return pictures.find_size(path, Policy(source_options(data), Skipped()))


def find_manifest(path: str) -> scored.Manifest | None:
  """What made the entropies stored in a folder; None for plain text."""
  return scored.load_manifest(path) if scored.is_scored(path) else None


def source_options(data: ConfigDict) -> SourceOptions:
  """How `config.data` says that files are read.

  Raises:
    FileNotFoundError: there is no template.
    ValueError: its template is none.
  """
  names = ("text_field", "on_error", "invalid_utf8", "max_document_bytes")
  options = SourceOptions(**{name: data[name] for name in names})
  if data.get("format") == "pictures":  # runs of before have none
    return dataclasses.replace(options, pictures=tuple(data.picture_size))
  if data.get("format") != "answers":
    return options
  return dataclasses.replace(options, template=templates.load(data.template))


def _parts(data: ConfigDict) -> dict[str, Sequence]:
  """Name -> path and weight."""
  parts = data.mixture.to_dict() or {"text": (data.path, 1.0)}
  for name, part in parts.items():
    is_pair = isinstance(part, tuple | list) and len(part) == 2
    if not (is_pair and isinstance(part[0], str) and patching.is_number(part[1])):
      raise ValueError(f"config.data.mixture.{name} is {part!r}; it must be (path, weight).")
  return parts
