"""The folder of a run: its settings and its weights."""

import dataclasses
import json
import os
import time
from typing import Any, NamedTuple

import flax.linen as nn
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from blt_jax import config, kinds
from blt_jax.models.config import ByteLMConfig
from blt_jax.models.init import abstract_params
from blt_jax.parallel import distributed
from blt_jax.runs import checkpoint
from blt_jax.storage import atomic

_CONFIG = "config.json"
_SEEN_AFTER = 60  # seconds until network disks show what another host wrote


@dataclasses.dataclass(frozen=True)
class Run:
  """A trained model.

  Attributes:
    config: the settings it was trained with.
    model: its module.
    params: its parameters, on the first device.
    step: updates that made them.
  """

  config: ConfigDict
  model: nn.Module
  params: Any
  step: int


class EntropyModel(NamedTuple):
  """A trained entropy model."""

  config: ByteLMConfig
  params: Any


def load_run(workdir: str | os.PathLike, step: checkpoint.Step = None) -> Run:
  """Loads a checkpoint of a run.

  Args:
    workdir: the run's folder.
    step: which checkpoint, as for `checkpoint.find_step`; None for the newest.

  Raises:
    FileNotFoundError: the folder holds no run, or no such checkpoint.
    ValueError: what it holds is damaged, or `step` is "best" and nothing tells which is.
  """
  settings = load_config(workdir)
  model = kinds.build_model(config.make_model_config(settings.model))
  found = checkpoint.find_step(epath.Path(workdir), step)
  params = checkpoint.load_params(epath.Path(workdir), abstract_params(model), found)
  logging.info("Loaded step %d of %s.", found, workdir)
  return Run(settings, model, params, found)


def load_entropy_model(
  workdir: str | os.PathLike, step: checkpoint.Step = None
) -> EntropyModel:
  """Loads the run of an entropy model.

  Args: as for `load_run`.

  Raises:
    FileNotFoundError: as `load_run` does.
    ValueError: as `load_run`, or the run is one of another kind of model.
  """
  run = load_run(workdir, step)
  if run.config.model.kind != "byte_lm":
    raise ValueError(f"{workdir} is no entropy model: config.model.kind must be byte_lm.")
  return EntropyModel(run.model.config, run.params)


def _architecture(model):
  """Settings of a model without those that change only how it is computed."""
  kept = {k: v for k, v in model.items() if k not in ("remat", "unroll")}
  return {k: _architecture(v) if isinstance(v, dict) else v for k, v in kept.items()}


def load_config(workdir: str | os.PathLike) -> ConfigDict:
  """Reads the settings of a run.

  Raises:
    FileNotFoundError: the folder holds no run.
    ValueError: its settings are damaged.
  """
  path = epath.Path(workdir) / _CONFIG
  if not path.exists():
    hint = "train it first"
    if path.parent.parent.name == "checkpoints":
      hint = f"it is a checkpoint: give the run {path.parents[2]} and step {path.parent.name}"
    raise FileNotFoundError(f"{workdir} holds no run (no {_CONFIG}); {hint}.")
  return ConfigDict(atomic.parse_json(path.read_bytes(), path))


def find_section(workdir: str | os.PathLike, section: str) -> ConfigDict:
  """A section of the settings that a run began with; empty if there is no run yet."""
  if not (epath.Path(workdir) / _CONFIG).exists():
    return ConfigDict()
  return load_config(workdir).get(section, ConfigDict())


def share_config(workdir: epath.Path, settings: ConfigDict) -> None:
  """Has process 0 write the settings of a run into its folder; all processes call it.

  Raises:
    ValueError: as `save_config`.
    FileNotFoundError: another process does not see the folder.
  """
  with distributed.failing_together():
    if distributed.is_lead():
      save_config(workdir, settings)
  with distributed.failing_together():
    deadline = time.monotonic() + _SEEN_AFTER
    while not (workdir / _CONFIG).exists():
      if time.monotonic() > deadline:
        raise FileNotFoundError(
          f"config.workdir {workdir} must be one folder that all hosts see, on a shared disk "
          "or in a bucket; what process 0 wrote there is not there."
        )
      time.sleep(1)


def save_config(workdir: epath.Path, settings: ConfigDict) -> None:
  """Writes the settings of a run into its folder, which it makes.

  Raises:
    ValueError: the folder holds a run of another model.
    OSError: it cannot be written.
  """
  text = settings.to_json_best_effort(indent=2)
  if (workdir / _CONFIG).exists():
    old = _architecture(load_config(workdir).model.to_dict())
    new = _architecture(json.loads(text)["model"])
    changed = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
    if changed:
      raise ValueError(
        f"{workdir} holds a run of another model: config.model differs in {changed}. "
        "Choose another config.workdir, or remove the old run."
      )
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    atomic.write_text(workdir / _CONFIG, text)
  except OSError as error:
    raise OSError(
      f"config.workdir {workdir} cannot be written: {error}. Choose a folder or a bucket where "
      "you may write."
    ) from error
