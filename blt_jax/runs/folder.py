"""The folder of a run: its settings and its weights."""

import dataclasses
import json
import os
import time
from typing import Any, NamedTuple

import flax.linen as nn
from absl import logging
from ml_collections import ConfigDict

from blt_jax import config, kinds
from blt_jax.models.config import ByteLMConfig
from blt_jax.models.init import abstract_params
from blt_jax.parallel import distributed
from blt_jax.runs import changes, checkpoint, model_settings, stored_params, stored_settings
from blt_jax.storage import atomic, paths
from blt_jax.storage.folders import Folder

_CONFIG = "config.json"
TOKENIZER = "tokenizer.model"  # of runs with BPE pieces
_EARLIER = "earlier_configs"  # of the starts before: 1.json, 2.json, ...
_SEEN_AFTER = 60  # seconds until network disks show what another host wrote


@dataclasses.dataclass(frozen=True)
class Run:
  """A trained model.

  Attributes:
    config: the settings it was trained with; what moves while training, such as the threshold
      of an end_to_end, is where the checkpoint has it.
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
    ValueError: what it holds is damaged, its settings are not those that it was trained with,
      or `step` is "best" and nothing tells which is.
  """
  settings = load_config(workdir)
  model = kinds.build_model(config.make_model_config(settings.model))
  found = checkpoint.find_step(workdir, step)
  params = stored_params.load(workdir, abstract_params(model), found, settings)
  if scalars := stored_params.scalars_of(workdir, found):
    settings.model.update(scalars)
    model = kinds.build_model(config.make_model_config(settings.model))
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
    hint = ""
    if kinds.find_kind(run.config.model.kind).patched:
      hint = (
        " It gives entropies of its own: those of text that score_entropies has stored, or as "
        "it reads, by --entropy_model=own."
      )
    raise ValueError(f"{workdir} is no entropy model: config.model.kind must be byte_lm.{hint}")
  return EntropyModel(run.model.config, run.params)


def load_config(workdir: str | os.PathLike) -> ConfigDict:
  """Reads the settings of a run, see `stored_settings.from_stored`.

  Its tokenizer is the one in its folder, if that is there.

  Raises:
    FileNotFoundError: the folder holds no run.
    ValueError: its settings are damaged, or somebody else's.
  """
  home = Folder(workdir)
  if not home.exists(_CONFIG):
    run, found, step = os.fspath(workdir).rstrip("/").rpartition("/checkpoints/")
    hint = (
      f"it is a checkpoint: give the run {run} and step {step}" if found else "train it first"
    )
    raise FileNotFoundError(f"{workdir} holds no run (no {_CONFIG}); {hint}.")
  path = home.path_of(_CONFIG)
  settings = stored_settings.from_stored(home.read_json(_CONFIG), workdir, path)
  if home.exists(TOKENIZER):
    settings.patching.tokenizer = home.path_of(TOKENIZER)
  return settings


def find_config(workdir: str | os.PathLike) -> ConfigDict:
  """The settings that a run has; empty if there is no run yet."""
  return load_config(workdir) if Folder(workdir).exists(_CONFIG) else ConfigDict()


def check_reads_text(config: ConfigDict, workdir: str, way_out: str) -> None:
  """Raises ValueError, with what to do instead, where a run of these settings has pictures."""
  if config.get("data", {}).get("format") == "pictures":
    raise ValueError(f"{workdir} learned pictures, not text; {way_out}.")


def check_new(output: str) -> None:
  """Raises ValueError where the folder of --output exists, which is to be made."""
  if paths.exists(output):
    raise ValueError(f"--output={output} exists; name a new folder, or remove it.")


def share_config(workdir: str | os.PathLike, settings: ConfigDict) -> None:
  """Has process 0 write the settings of a run into its folder; all processes call it.

  Those of the start before are kept beside them, and what differs is said.

  Raises:
    ValueError: as `save_config` and `changes.check`.
    FileNotFoundError: another process does not see the folder.
  """
  with distributed.failing_together():
    if distributed.is_lead():
      if Folder(workdir).exists(_CONFIG):
        before = load_config(workdir)
        _check_model(workdir, before, settings)
        changes.check(before, settings, checkpoint.newest_step(workdir))
        _keep_earlier(Folder(workdir))
      _write_config(workdir, settings)
  with distributed.failing_together():
    deadline = time.monotonic() + _SEEN_AFTER
    while not Folder(workdir).exists(_CONFIG):
      if time.monotonic() > deadline:
        raise FileNotFoundError(
          f"config.workdir {workdir} must be one folder that all hosts see, on a shared disk "
          "or in a bucket; what process 0 wrote there is not there."
        )
      time.sleep(1)


def to_plain(settings: ConfigDict) -> dict[str, Any]:
  """Settings as JSON holds them."""
  return json.loads(settings.to_json_best_effort())


def save_config(
  workdir: str | os.PathLike, settings: ConfigDict, later: str | os.PathLike | None = None
) -> None:
  """Writes the settings of a run into its folder, which it makes.

  Args:
    workdir: the folder.
    settings: the whole settings.
    later: where the folder will be moved, which is where paths are seen from; None: nowhere.

  Raises:
    ValueError: the folder holds a run of another model.
    OSError: it cannot be written.
  """
  if Folder(workdir).exists(_CONFIG):
    _check_model(workdir, load_config(workdir), settings)
  _write_config(workdir, settings, later)


def _write_config(
  workdir: str | os.PathLike, settings: ConfigDict, later: str | os.PathLike | None = None
) -> None:
  home = Folder(workdir)
  advice = "Choose a folder or a bucket where you may write"
  with atomic.explaining(f"config.workdir {workdir}", advice):
    home.make()
    with atomic.writing(home.path_of(_CONFIG)) as file:
      stored = stored_settings.to_stored(to_plain(settings), later or workdir)
      file.write(json.dumps(stored, indent=2) + "\n")


def _check_model(workdir: str | os.PathLike, before: ConfigDict, settings: ConfigDict) -> None:
  """Raises ValueError where the folder holds a run of another model."""
  changed = model_settings.differences(before.model.to_dict(), to_plain(settings)["model"])
  if changed:
    raise ValueError(
      f"{workdir} holds a run of another model: {'; '.join(map(str, changed))}. "
      "Choose another config.workdir, or remove the old run."
    )


def _keep_earlier(home: Folder) -> None:
  """Keeps the settings of the start before."""
  earlier = Folder(home.path_of(_EARLIER))
  earlier.make()
  numbers = [int(n.removesuffix(".json")) for n in earlier.sizes() if n[:1].isdigit()]
  earlier.write_json(f"{max(numbers, default=0) + 1}.json", home.read_json(_CONFIG))
