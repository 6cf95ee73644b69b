"""The folder of a run: its settings, its weights, its patching."""

import dataclasses
import json
import os
import pathlib
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from blt_jax import checkpoint, config, train_state
from blt_jax.data.entropy import EntropyScorer
from blt_jax.data.table import TableModel
from blt_jax.data.transforms import PatchDocument
from blt_jax.decode import uncached
from blt_jax.models.byte_lm import ByteLM
from blt_jax.models.config import ByteLMConfig
from blt_jax.patching import PatchingConfig

_CONFIG, _THRESHOLD = "config.json", "threshold.json"
_RULE = ("monotonic", "threshold_add", "reset_at_newline")  # what a threshold goes with
ENTROPIES = ("model", "table", "stored")


@dataclasses.dataclass(frozen=True)
class Run:
  """A trained model.

  Attributes:
    config: the settings it was trained with.
    model: its module.
    params: its parameters, on the first device.
  """

  config: ConfigDict
  model: train_state.Model
  params: Any


class EntropyModel(NamedTuple):
  """A trained entropy model."""

  config: ByteLMConfig
  params: Any


@dataclasses.dataclass(frozen=True)
class Patcher:
  """How a run groups bytes: the scheme and, where it needs one, what gives entropies."""

  config: PatchingConfig
  entropy_model: EntropyModel | TableModel | None = None

  def documents(self) -> PatchDocument:
    """The transformation of raw documents, for the pipeline."""
    model = self.entropy_model
    if isinstance(model, EntropyModel):
      return PatchDocument(self.config, EntropyScorer(*model, self.config.reset_at_newline))
    return PatchDocument(self.config, model)


def load_run(workdir: str | os.PathLike) -> Run:
  """Loads the newest checkpoint of a run.

  Raises:
    FileNotFoundError: the folder holds no run, or no checkpoint yet.
  """
  settings = load_config(workdir)
  model = train_state.build_model(config.make_model_config(settings.model))
  abstract = train_state.abstract_params(model)
  return Run(settings, model, checkpoint.load_params(pathlib.Path(workdir), abstract))


def load_entropy_model(workdir: str | os.PathLike) -> EntropyModel:
  """Loads the run of an entropy model.

  Raises:
    FileNotFoundError: as `load_run` does.
    ValueError: the run is one of another kind of model.
  """
  run = load_run(workdir)
  if not isinstance(run.model, ByteLM):
    raise ValueError(f"{workdir} is no entropy model: config.model.kind must be byte_lm.")
  return EntropyModel(run.model.config, run.params)


def load_config(workdir: str | os.PathLike) -> ConfigDict:
  """Reads the settings of a run.

  Raises:
    FileNotFoundError: the folder holds no run.
  """
  path = pathlib.Path(workdir) / _CONFIG
  if not path.exists():
    raise FileNotFoundError(f"{workdir} holds no run (no {_CONFIG}); train it first.")
  return ConfigDict(json.loads(path.read_text()))


def save_config(workdir: pathlib.Path, settings: ConfigDict) -> None:
  """Writes the settings of a run into its folder, which it makes.

  Raises:
    ValueError: the folder holds a run of another model.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  text = settings.to_json_best_effort(indent=2)
  if (workdir / _CONFIG).exists():
    old, new = load_config(workdir).model.to_dict(), json.loads(text)["model"]
    changed = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
    if changed:
      raise ValueError(
        f"{workdir} holds a run of another model: config.model differs in {changed}. "
        "Choose another config.workdir, or remove the old run."
      )
  _write(workdir / _CONFIG, text)


def save_threshold(workdir: str | os.PathLike, rule: PatchingConfig) -> None:
  """Writes the rule that calibration found next to its model; see `load_patcher`."""
  found = {name: getattr(rule, name) for name in ("threshold", *_RULE)}
  _write(pathlib.Path(workdir) / _THRESHOLD, json.dumps(found, indent=2))


def load_patcher(section: ConfigDict) -> Patcher:
  """Builds the patching of `config.patching`, entropy model and threshold included.

  Raises:
    FileNotFoundError: the entropy model's run is missing.
    ValueError: the entropy scheme lacks a model or a threshold.
  """
  if section.scheme != "entropy":
    return Patcher(config.make_patching_config(section))
  if section.entropies not in ENTROPIES:
    raise ValueError(
      f"config.patching.entropies is {section.entropies!r}; choose one of {ENTROPIES}."
    )
  folder = section.entropy_model
  if not folder:
    raise ValueError(
      "Entropy patching needs an entropy model: set config.patching.entropy_model to the "
      "folder of its run (train one with configs/quickstart.py:entropy), or choose "
      "another config.patching.scheme."
    )
  is_table = section.entropies == "table"
  entropy_model = _load_table(folder, section) if is_table else load_entropy_model(folder)
  threshold = None
  if section.threshold is None and section.patch_size is None:
    threshold = _load_threshold(folder, section)
  return Patcher(config.make_patching_config(section, threshold), entropy_model)


def _load_table(folder: str, section: ConfigDict) -> TableModel:
  table = TableModel(folder)
  if table.info["reset_at_newline"] != section.reset_at_newline:
    raise ValueError(
      f"The table of {folder} was trained with reset_at_newline="
      f"{table.info['reset_at_newline']}; set config.patching.reset_at_newline to that."
    )
  return table


def _load_threshold(folder: str, section: ConfigDict) -> float:
  path = pathlib.Path(folder) / _THRESHOLD
  found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
  if not all(name in found and found[name] == section[name] for name in _RULE):
    rule = ", ".join(f"{name}={section[name]}" for name in _RULE)
    raise ValueError(
      f"No threshold for {rule}: set config.patching.threshold (nats), or let "
      f"`python -m blt_jax.calibrate --run={folder}{_flags(section)}` find one."
    )
  return found["threshold"]


def _flags(section: ConfigDict) -> str:
  given = {name: section[name] for name in _RULE if section[name] is not None}
  flags = [
    f"--{n}={v}" if v is not True else f"--{n}" for n, v in given.items() if v is not False
  ]
  return "".join(f" {flag}" for flag in flags)


def load_predictor(workdir: str | os.PathLike) -> uncached.Predict:
  """What generation needs of a run: logits from ids, patching included.

  Raises: as `load_run` and `load_patcher` do.
  """
  run = load_run(workdir)
  if isinstance(run.model, ByteLM):
    return uncached.byte_lm_predictor(run.model, run.params)
  patcher = load_patcher(run.config.patching)
  entropy = None
  if patcher.entropy_model is not None:
    model = ByteLM(patcher.entropy_model.config)
    entropy = uncached.byte_lm_predictor(model, patcher.entropy_model.params)
  return uncached.blt_predictor(run.model, run.params, patcher.config, entropy)


def _write(path: pathlib.Path, text: str) -> None:
  """Writes aside and renames, so that a file cut short never looks whole."""
  partial = path.with_suffix(".partial")
  partial.write_text(text + "\n")
  partial.rename(path)
