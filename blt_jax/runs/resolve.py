"""Settings made whole, once: what they leave open gets its value here, and is only read after.

What is left open is what the run began with, or what calibration found, or a default that
follows from other settings.
"""

import math
from typing import Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict, FrozenConfigDict

from blt_jax import config as settings
from blt_jax import patching
from blt_jax.data.reading.scored import Manifest
from blt_jax.parallel import sharding
from blt_jax.parallel.host_share import host_share
from blt_jax.runs import (
  bounds,
  corpus,
  distillation,
  entropy_digest,
  folder,
  ngrams,
  stored_settings,
  tokenizers,
)
from blt_jax.runs.patcher import RULE, Stored, check_reset, read_threshold
from blt_jax.storage import paths


def resolve(config: ConfigDict) -> FrozenConfigDict:
  """The settings of a run that is to be trained, nothing left open.

  Args:
    config: all settings; it stays as it is.

  Returns:
    A copy that nobody can write to, with `data.num_streams`, `data.num_patches`,
    `data.heldout_salt`, `data.template` (what its file holds), `model.ngram_vocab_sizes`, of
    pictures `data.picture_size` and with n-grams of pixels `model.picture_size`, of
    the entropy scheme `patching.entropy_model`, its `entropy_digest`, `threshold` and, of a
    mixture, `coarser`, and with BPE pieces `patching.tokenizer` and its `tokenizer_digest`, of
    a distillation `distillation.teacher_digest`. A run that goes on keeps what was the default
    when it began.

  Raises:
    FileNotFoundError: as `tokenizers.resolve` and `distillation.resolve`; or there is no
      template.
    ValueError: the run began with another split of its text; streams do not divide; a picture
      has no room in a row; patches have other resolutions than the model; or as
      `resolve_patching`, `tokenizers.resolve` and `distillation.resolve`.
  """
  whole = _copy(config)
  data, began_with = whole.data, folder.find_config(config.workdir)
  mesh = sharding.make_mesh(**whole.mesh)
  sharding.check_batch_size(data.batch_size, whole.optimizer.accumulate, mesh)
  num_shares = host_share(data.batch_size, mesh).count
  _keep_former_ways(whole, began_with)
  data.num_patches = settings.make_batch_shape(whole).num_patches
  data.num_streams = _num_streams(data, began_with, num_shares)
  data.heldout_salt = _heldout_salt(whole, began_with)
  if data.format == "pictures":
    _fit_pictures(whole)
  template = corpus.source_options(data).template
  data.template = "" if template is None else template.to_json()
  _fit_ngram_tables(whole)
  resolutions = settings.resolutions(whole.model)
  if whole.patching.threshold is None:
    whole.patching.update(_thresholds_of_start(whole.patching, began_with, resolutions))
  distillation.resolve(whole, began_with)
  if tokenizers.needs_tokenizer(whole):
    path, digest = tokenizers.resolve(whole, began_with)
    whole.patching.update(tokenizer=path, tokenizer_digest=digest)
  stored = corpus.stored_manifests(data)
  whole.patching = resolve_patching(whole.patching, stored, resolutions)
  bounds.check_resolutions(whole)
  whole.patching.entropy_digest = entropy_digest.resolve(
    whole.patching, began_with, whole.allow_changes
  )
  return settings.freeze(whole)


def resolve_patching(
  section: ConfigDict, stored: Stored = (), resolutions: int = 1
) -> ConfigDict:
  """A copy of `config.patching` with the entropy model and the threshold of the text at hand.

  Where text brings entropies, the entropy model becomes what made them, and the threshold the
  one calibrated on them, unless they are set. A threshold that nobody found stays None.

  Args:
    section: `config.patching`; it stays as it is.
    stored: for each source of text its path, and what made its entropies or None.
    resolutions: of a mixture, whose coarser thresholds are those found with the first one.

  Raises:
    ValueError: the text has no entropies and needs some, has some that would go unused, or
      has those of another rule.
  """
  section = _copy(section)
  if section.scheme != "entropy":
    return section
  for path, manifest in stored:
    _adopt(section, path, manifest, resolutions)
  if section.threshold is None and section.patch_size is None:
    section.update(_find_thresholds(section.entropy_model, section, resolutions))
  return section


def _keep_former_ways(config: ConfigDict, began_with: ConfigDict) -> None:
  before = began_with.get("model", {})
  for name, former in stored_settings.FORMER_WAYS.items():
    if name in config.model and before.get(name) == former != config.model[name]:
      config.model[name] = former
      logging.warning(
        "The run in %s began with config.model.%s=%s and goes on so; choose another "
        "config.workdir to train with today's default.",
        config.workdir,
        name,
        former,
      )


def _fit_ngram_tables(config: ConfigDict) -> None:
  """Gives the model an embedding for each n-gram of the tables."""
  tables = ngrams.find(config)
  model, path = config.model, config.data.ngram_tables or config.workdir
  if tables and "ngram_vocab_sizes" not in model:
    raise ValueError(
      f"config.data.ngram_tables={path!r} would do nothing: a {model.kind} has no n-gram "
      "embeddings; leave it empty."
    )
  if tables and not model.ngram_vocab_sizes:
    model.ngram_vocab_sizes = tuple(ngrams.rows_of(tables).values())
  if tables:
    ngrams.check(tables, model, path)
  elif model.get("ngram_vocab_sizes"):
    raise ValueError(
      f"config.model.ngram_vocab_sizes={model.ngram_vocab_sizes} needs n-grams: count some "
      "with `python -m blt_jax.count_ngrams`; give their folder in config.data.ngram_tables."
    )


def _fit_pictures(config: ConfigDict) -> None:
  """Finds the size of pictures, tells the model, and looks whether rows hold them whole."""
  data, model = config.data, config.model
  data.picture_size = tuple(data.picture_size) or corpus.find_picture_size(data)
  if model.get("pixel_ngrams"):
    if tuple(model.picture_size) not in ((), data.picture_size):
      raise ValueError(
        f"config.model.picture_size is {model.picture_size} and the pictures of config.data "
        f"are {data.picture_size}; leave it out."
      )
    model.picture_size = data.picture_size
  count = math.prod(data.picture_size)
  patches = _most_patches(config.patching, count + 2)
  for name, least in (("seq_len", count + 1), ("num_patches", patches)):
    if data[name] < least:
      raise ValueError(
        f"config.data.{name} is {data[name]}, and a picture of {data.picture_size}, which no "
        f"row may cut, needs {least}; give as many or more."
      )


def _most_patches(section: ConfigDict, length: int) -> int:
  """The most patches that a document of so many ids can have, BOS and EOS included."""
  if section.scheme != "static":
    return length
  rule = settings.make_patching_config(section)
  lengths = patching.patch_lengths(np.zeros((1, length), np.int32), rule, include_next=False)
  return lengths.shape[1]


def changed(section: ConfigDict, **values: Any) -> ConfigDict:
  """A copy of a section with other values."""
  section = _copy(section)
  section.update(values)
  return section


def _copy(config: ConfigDict) -> ConfigDict:
  """With its types; of a frozen one, a copy that can be written to."""
  if isinstance(config, FrozenConfigDict):
    return ConfigDict(config)
  return config.copy_and_resolve_references()


def _num_streams(data: ConfigDict, began_with: ConfigDict, num_shares: int) -> int:
  """As the config says, else as the run began, else one for each share of a batch."""
  batch_size, count = data.batch_size, data.num_streams
  if count is None:
    before = began_with.get("data", {}).get("num_streams") or num_shares
    fits = not before % num_shares and not batch_size % before
    return before if fits else num_shares
  if count % num_shares or batch_size % count:
    raise ValueError(
      f"config.data.num_streams {count} must be a multiple of the {num_shares} processes that "
      f"share a batch, and divide config.data.batch_size {batch_size}."
    )
  return count


def _heldout_salt(config: ConfigDict, began_with: ConfigDict) -> str:
  """As the run began, else as the config says, else the usual one."""
  data = config.data
  salt = corpus.salt_of(began_with.get("data", data))
  if config.allow_changes and data.heldout_salt is not None:
    return data.heldout_salt
  if data.heldout_salt not in (None, salt):
    raise ValueError(
      f"config.data.heldout_salt is {data.heldout_salt!r}, and the run in {config.workdir} "
      f"began with {salt!r}: it would be tested on text that it learned. Leave it out, choose "
      "another config.workdir, or go on so with --config.allow_changes=True."
    )
  return salt


def _thresholds_of_start(
  section: ConfigDict, began_with: ConfigDict, resolutions: int
) -> dict[str, Any]:
  """A run that goes on keeps its thresholds, whatever calibration found since."""
  before = began_with.get("patching", ConfigDict())
  names = "scheme", "patch_size", *RULE
  given, had = section.entropy_model, before.get("entropy_model")
  is_same = not given or (bool(had) and paths.absolute(given) == paths.absolute(had))
  is_same = is_same and all(before.get(name, "") == section[name] for name in names)
  if not is_same:
    return {}
  coarser = tuple(before.get("coarser", ())) if resolutions > 1 else ()
  return {"threshold": before.get("threshold"), "coarser": section.coarser or coarser}


def _adopt(section: ConfigDict, path: str, manifest: Manifest | None, resolutions: int) -> None:
  """Takes what stands beside stored entropies."""
  if (manifest is not None) != (section.entropies == "stored"):
    way_out = (
      f"python -m blt_jax.score_entropies --input={path} --output=... makes some"
      if manifest is None
      else "set config.patching.entropies=stored to use them"
    )
    raise ValueError(
      f"config.patching.entropies is {section.entropies!r} and {path} holds "
      f"{'no' if manifest is None else 'stored'} entropies; {way_out}."
    )
  if manifest is None:
    return
  check_reset(section, f"The entropies of {path} were made", manifest.reset_at_newline)
  section.entropy_model = section.entropy_model or manifest.model
  if section.threshold is None:
    section.update(_find_thresholds(path, section, resolutions))


def _find_thresholds(path: str, section: ConfigDict, resolutions: int) -> dict[str, Any]:
  """What calibration found for the rule and wrote into a folder; nothing if it did not."""
  found = read_threshold(path) if path else {}
  if not found or any(found.get(name, False) != section[name] for name in RULE):
    return {}
  coarser = tuple(found.get("coarser", ())) if resolutions > 1 else ()
  return {"threshold": found["threshold"], "coarser": section.coarser or coarser}
