"""How a run groups bytes, from `config.patching`: rule, threshold, source of entropies."""

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from blt_jax import config, patching
from blt_jax.data.piece_vocabulary import PieceVocabulary
from blt_jax.data.pieces import PieceEncoder
from blt_jax.data.pipeline import BatchShape
from blt_jax.data.reading.scored import Manifest
from blt_jax.data.transforms import PatchDocument, PatchPieces
from blt_jax.decode import own_entropies
from blt_jax.entropy.neural import EntropyScorer
from blt_jax.entropy.table import TableModel
from blt_jax.patching import PatchingConfig
from blt_jax.runs import entropy_digest, tokenizers
from blt_jax.runs import folder as runs
from blt_jax.storage.folders import Folder

ENTROPIES = ("model", "table", "stored", "device", "head", "own")
THRESHOLD_FILE = "threshold.json"
RULE = (
  "monotonic",
  "cumulative",
  "threshold_add",
  "reset_at_newline",
)  # what a threshold goes with
_MEASURED = ("target_bytes_per_patch", "largest_entropy")

Stored = Sequence[tuple[str, Manifest | None]]  # path of a source, what made its entropies


@dataclasses.dataclass(frozen=True)
class Patcher:
  """How a run groups bytes: the scheme and, where it needs one, what gives entropies.

  Attributes:
    config: the scheme.
    entropy_model: of the entropy scheme.
    encoder: of the bpe scheme.
    pieces: of a model over pieces.
    calibration: what `save_threshold` took with the threshold; empty if it is of another
      origin.
    on_device: whether rows are patched on the device: by an entropy model, see
      `models.device_patches`, or by the model itself.
    patched_by: what says where patches end: "source", of the scheme; or "head" or "own", of the
      model itself, see `language_model.from_blt`.
  """

  config: PatchingConfig
  entropy_model: runs.EntropyModel | TableModel | None = None
  encoder: PieceEncoder | None = None
  pieces: PieceVocabulary | None = None
  calibration: Mapping[str, float] = dataclasses.field(default_factory=dict)
  on_device: bool = False
  patched_by: str = "source"

  def rows(self) -> PatchDocument:
    """As `documents`, of what is to be packed: bytes one by one where the device patches."""
    return PatchDocument(PatchingConfig(scheme="byte")) if self.on_device else self.documents()

  def shape_of_rows(self, shape: BatchShape) -> BatchShape:
    """The shape of rows of `rows`, in which no patch lacks a slot."""
    return (
      dataclasses.replace(shape, num_patches=shape.seq_len + 1) if self.on_device else shape
    )

  def documents(self) -> PatchDocument:
    """The transformation of raw documents, for the pipeline."""
    model = self.entropy_model
    if isinstance(model, runs.EntropyModel):
      scorer = EntropyScorer(*model, self.config.reset_at_newline)
      return PatchDocument(self.config, scorer, is_slow=True)
    if self.pieces is not None:
      return PatchDocument(self.config, encode=self.pieces, sizes=self.pieces.sizes)
    if self.encoder is not None and not self.config.delimiters:
      return PatchPieces(self.config, self.encoder.sizes)
    if self.encoder is not None:
      return PatchDocument(self.config, encode=self.encoder)
    return PatchDocument(self.config, model)


def load_patcher(section: ConfigDict, stored: Stored = ()) -> Patcher:
  """Builds the patching of `config.patching`, entropy model and threshold included.

  Args:
    section: `config.patching`, as `resolve.resolve_patching` gives it.
    stored: for each source of text its path, and what made its entropies or None.

  Raises:
    FileNotFoundError: the entropy model or the tokenizer is missing.
    ImportError: sentencepiece is missing, and there are pieces.
    ValueError: the scheme lacks a model, a tokenizer or a threshold, the tokenizer or the
      entropy model is not that of the run, or the entropies of the text are those of another
      model or rule than its.
  """
  if section.scheme != "entropy":
    rule = config.make_patching_config(section)
    tokenizers.check_digest(section)
    if section.scheme == "bpe":
      return Patcher(rule, encoder=_load_encoder(section))
    if section.scheme == "byte" and section.get("tokenizer"):
      return Patcher(rule, pieces=PieceVocabulary(section.tokenizer))
    return Patcher(rule)
  if section.entropies not in ENTROPIES:
    raise ValueError(
      f"config.patching.entropies is {section.entropies!r}; choose one of {ENTROPIES}."
    )
  if section.entropies in ("head", "own"):
    return _by_itself(section)
  folder = section.entropy_model
  if not folder:
    raise ValueError(
      "Entropy patching needs an entropy model: set config.patching.entropy_model to the "
      "folder of its run (train one with configs/quickstart.py:entropy), or choose "
      "another config.patching.scheme."
    )
  if any(manifest is not None and manifest.patching for _, manifest in stored):
    return _by_scores(section, stored)
  is_table = section.entropies == "table"
  model = _load_table(folder, section) if is_table else _load_model(folder, stored)
  entropy_digest.check(section)
  check_threshold(folder, section)
  rule = config.make_patching_config(section)
  folders = [*(path for path, _ in stored), folder]
  calibration = _find_calibration(rule, folders)
  on_device = section.entropies == "device"
  return Patcher(rule, model, calibration=calibration, on_device=on_device)


def _by_itself(section: ConfigDict) -> Patcher:
  """The patching of a model that says itself where patches end."""
  rule = config.make_patching_config(section)
  if section.entropies == "own":
    own_entropies.check(rule)
  else:  # nothing else of the rule counts for a head, and it needs no entropies
    most = rule.max_patch_length
    rule = PatchingConfig("byte", threshold=rule.threshold, max_patch_length=most)
  return Patcher(rule, on_device=True, patched_by=section.entropies)


def _by_scores(section: ConfigDict, stored: Stored) -> Patcher:
  """The patching of text that a BLT has scored, which is not needed any more."""
  folder = section.entropy_model
  for path, manifest in stored:
    assert manifest is not None  # as `resolve.resolve_patching` has seen to
    found = entropy_digest.find(folder, manifest.step)
    if found not in (None, manifest.digest):
      raise ValueError(
        f"The entropies of {path} were made by {manifest.model} at step {manifest.step}, and "
        f"{folder} has other parameters: score the text again, or leave "
        "config.patching.entropy_model out."
      )
  check_threshold(stored[0][0], section)
  rule = config.make_patching_config(section)
  return Patcher(rule, calibration=_find_calibration(rule, [path for path, _ in stored]))


def _load_encoder(section: ConfigDict) -> PieceEncoder:
  if not section.tokenizer:
    raise ValueError(
      "The bpe scheme needs config.patching.tokenizer, the file of a SentencePiece model."
    )
  return PieceEncoder(section.tokenizer)


def _load_model(folder: str, stored: Stored) -> runs.EntropyModel:
  """Loads an entropy model, and checks that it made the entropies that text brings."""
  makers = [(path, manifest) for path, manifest in stored if manifest is not None]
  try:
    model = runs.load_entropy_model(folder)
  except FileNotFoundError as error:
    if not makers:
      raise
    raise FileNotFoundError(
      f"{error} It made the entropies of {makers[0][0]}, and the BLT needs it for other "
      "text: give its folder in config.patching.entropy_model."
    ) from error
  digest = params_digest(model.params) if makers else None
  for path, manifest in makers:
    if digest != manifest.digest:
      raise ValueError(
        f"The entropies of {path} were made by {manifest.model} at step {manifest.step}, and "
        f"{folder} has other parameters: score the text again, or set "
        "config.patching.entropy_model to the model that made them."
      )
  return model


def params_digest(params: Any) -> str:
  """A fingerprint of a tree of parameters."""
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    array = np.ascontiguousarray(leaf)
    digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
    digest.update(array.data)
  return digest.hexdigest()[:16]


def save_threshold(
  workdir: str | os.PathLike, rule: PatchingConfig, **measured: float | None
) -> None:
  """Writes the rule that calibration found next to its model; see `load_patcher`.

  Args:
    workdir: folder of the model, or of the stored entropies.
    rule: with its threshold, and those of coarser resolutions.
    measured: `target_bytes_per_patch`, and `largest_entropy` of the sample in nats, so that
      training can warn when its text is of another kind.
  """
  found = {name: getattr(rule, name) for name in ("threshold", *RULE)}
  if rule.coarser:
    found["coarser"] = rule.coarser
  Folder(workdir).write_json(THRESHOLD_FILE, found | measured)


def read_threshold(workdir: str | os.PathLike) -> dict[str, Any]:
  """What `save_threshold` wrote into a folder; nothing if it did not.

  Raises:
    ValueError: it is damaged.
  """
  home = Folder(workdir)
  if not home.exists(THRESHOLD_FILE):
    return {}
  found, numbers = home.read_json(THRESHOLD_FILE), ("threshold", "threshold_add", *_MEASURED)
  for name in ("threshold", *found):
    value = found.get(name)
    if name == "coarser":
      is_right = isinstance(value, list) and all(map(_is_finite, value))
    else:
      is_right = _is_finite(value) if name in numbers else isinstance(value, bool)
    is_open = value is None and name not in ("threshold", "coarser")
    if name in ("threshold", "coarser", *RULE, *_MEASURED) and not (is_right or is_open):
      raise ValueError(
        f"{home.path_of(THRESHOLD_FILE)} is damaged: its {name} is {value!r}; let python -m "
        "blt_jax.calibrate make it again."
      )
  return found


def _is_finite(value: Any) -> bool:
  return patching.is_number(value) and value not in (np.inf, -np.inf)


def _find_calibration(rule: PatchingConfig, folders: Sequence[str]) -> dict[str, float]:
  """What stands beside this very threshold in one of the folders."""
  for home in folders:
    with contextlib.suppress(OSError, ValueError):  # missing or damaged: only warnings need it
      found = read_threshold(home)
      if all(found.get(name, False) == getattr(rule, name) for name in ("threshold", *RULE)):
        return {name: found[name] for name in _MEASURED if found.get(name) is not None}
  return {}


def _load_table(folder: str, section: ConfigDict) -> TableModel:
  table = TableModel(folder)
  check_reset(section, f"The table of {folder} was trained", table.reset_at_newline)
  return table


def check_reset(section: ConfigDict, what_was_done: str, given: bool) -> None:
  """Raises ValueError where entropies have another context than the run's."""
  if given != section.reset_at_newline:
    raise ValueError(
      f"{what_was_done} with reset_at_newline={given}; set config.patching.reset_at_newline "
      "to that."
    )


def check_threshold(folder: str, section: ConfigDict) -> None:
  """Raises ValueError where there is none for the entropies of a model's folder."""
  if section.threshold is None and section.patch_size is None:
    rule = ", ".join(f"{name}={section[name]}" for name in RULE)
    raise ValueError(
      f"No threshold for {rule}: set config.patching.threshold (nats), or let "
      f"`python -m blt_jax.calibrate --run={folder}{_flags(section)}` find one."
    )


def _flags(section: ConfigDict) -> str:
  given = {name: section[name] for name in RULE if section[name] is not None}
  flags = [
    f"--{n}={v}" if v is not True else f"--{n}" for n, v in given.items() if v is not False
  ]
  return "".join(f" {flag}" for flag in flags)
