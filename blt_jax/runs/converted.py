"""Weights of others as runs, and runs as folders of Hugging Face, array by array."""

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from blt_jax import config as settings
from blt_jax import convert, kinds
from blt_jax.convert.plan import Plan
from blt_jax.convert.stored import StoredArray
from blt_jax.entropy.table import is_table
from blt_jax.models.init import abstract_params
from blt_jax.runs import checkpoint, folder, patcher, resolve, stored_params
from blt_jax.storage import atomic, scratch

ENTROPY_MODEL = "entropy_model"  # folder of its run, in that of the BLT


def write_run(output: str, planned: convert.Planned) -> None:
  """Makes the folder of a run, and in it that of its entropy model where there is one.

  Args:
    output: folder to make.
    planned: the weights, which are read here; parameters keep the dtypes of the source.

  Raises:
    ValueError: the output exists, or an array is damaged.
    OSError: it cannot be written.
  """
  folder.check_new(output)
  config = _config_of(planned.model, output)
  rule, home = planned.patching, f"{output.rstrip('/')}/{ENTROPY_MODEL}"
  if rule is not None:
    names = [name for name in config.patching if hasattr(rule, name)]
    config.patching.update({name: getattr(rule, name) for name in names})
  with atomic.new_folder(output) as target:
    zeros = scratch.zeros_beside(target)
    if planned.entropy is not None:
      config.patching.entropy_model = home
      inner = f"{target.rstrip('/')}/{ENTROPY_MODEL}"
      _save(inner, home, planned.entropy, _config_of(planned.entropy, home), zeros)
      if rule is not None and rule.scheme == "entropy":
        patcher.save_threshold(inner, rule)
    _save(target, output, planned.model, config, zeros)


def _save(target: str, later: str, plan: Plan, config: ConfigDict, zeros: Any) -> None:
  with atomic.explaining(later):
    stored_params.save(target, 0, plan.stored(zeros), config)
  folder.save_config(target, config, later)  # last: without it the folder is no run


def _config_of(plan: Plan, workdir: str) -> ConfigDict:
  """The settings of a run of the model, at their defaults."""
  kind = next(name for name, k in kinds.KINDS.items() if k is kinds.kind_of(plan.config))
  config = settings.get_config(kind)
  config.workdir = workdir
  settings.set_model(config, plan.config)
  config.data.num_patches = settings.make_batch_shape(config).num_patches
  config.data.num_streams = 1
  return config


def write_hf(workdir: str, output: str, step: checkpoint.Step = None) -> None:
  """Makes a folder of Hugging Face of a BLT's run, its entropy model included.

  Args:
    workdir: the run's folder.
    output: folder to make.
    step: which checkpoint, as for `checkpoint.find_step`.

  Raises:
    FileNotFoundError: there is no run, or no such checkpoint.
    ValueError: the output exists, or Hugging Face has no counterpart for what the run is.
    OSError: it cannot be written.
  """
  folder.check_new(output)
  config = folder.load_config(workdir)
  if config.model.kind != "blt":
    raise ValueError(
      f"{workdir} is the run of a {config.model.kind}, and only a blt has a counterpart at "
      "Hugging Face; give the run of one."
    )
  section = resolve.resolve_patching(config.patching) if _patches_itself(config) else None
  rule = settings.make_patching_config(section or config.patching)
  model, params = _stored_params(workdir, config, step)
  source = convert.Converted(model, params, patching=rule)
  if section is not None:
    source = _with_entropy_model(source, section.entropy_model)
  with atomic.new_folder(output) as target:
    convert.to_hf(target, source)
  logging.info("The weights of %s are in %s.", workdir, output)


def _patches_itself(config: ConfigDict) -> bool:
  """Whether a neural model says where its patches end."""
  section = config.patching
  if section.scheme != "entropy":
    return False
  if not section.entropy_model or is_table(section.entropy_model):
    raise ValueError(
      f"The patching of {config.workdir} takes its entropies from "
      f"{section.entropy_model or 'nowhere'}, and Hugging Face's BLT has a neural entropy "
      "model; convert a run that was trained with one."
    )
  return True


def _with_entropy_model(source: convert.Converted, workdir: str) -> convert.Converted:
  config = folder.load_config(workdir)
  if config.model.kind != "byte_lm":
    raise ValueError(f"{workdir} is no entropy model: config.model.kind must be byte_lm.")
  model, params = _stored_params(workdir, config)
  return dataclasses.replace(source, entropy_config=model, entropy_params=params)


def _stored_params(
  workdir: str | os.PathLike, config: ConfigDict, step: checkpoint.Step = None
) -> tuple[Any, Any]:
  """A run's model, and its parameters, each read when it is asked for."""
  step = checkpoint.find_step(workdir, step)
  model = kinds.build_model(settings.make_model_config(config.model))
  flat = flax.traverse_util.flatten_dict(abstract_params(model), sep="/")
  stored = stored_params.shapes_of(workdir, step)

  def read(path: str) -> np.ndarray:
    wanted = _unflatten({path: flat[path]})
    found = stored_params.load(workdir, wanted, step, config, as_stored=True)
    return jax.tree.leaves(found)[0]

  lazy = {
    path: StoredArray(path, os.fspath(workdir), x.shape, np.dtype(stored.get(path, x).dtype),
                      functools.partial(read, path))
    for path, x in flat.items()
  }  # fmt: skip
  return model.config, _unflatten(lazy)


def _unflatten(flat: Mapping[str, Any]) -> Any:
  return flax.traverse_util.unflatten_dict(flat, sep="/")
