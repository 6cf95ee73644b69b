"""Parameters to start from: those of a run, or the weights of a Llama's folder."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import flax.traverse_util
import jax
import numpy as np

from blt_jax import config as settings
from blt_jax import convert
from blt_jax.models.config import TransformerConfig
from blt_jax.runs import checkpoint, folder, stored_params
from blt_jax.storage.folders import Folder


@dataclasses.dataclass(frozen=True)
class Parameters:
  """Parameters that are found, and not read yet.

  Attributes:
    model: config of the model that they are of.
    shapes: of all, by path.
    where: they come from, for messages.
    load: reads those of the given paths as the given shapes, dtypes and shardings say.
  """

  model: Any
  shapes: Mapping[str, tuple[int, ...]]
  where: str
  load: Callable[[dict[str, jax.ShapeDtypeStruct]], dict[str, jax.Array]]


def find(path: str | os.PathLike) -> Parameters:
  """Finds the parameters of a folder.

  Args:
    path: of a run, or of a Llama of Hugging Face.

  Raises:
    FileNotFoundError: there is neither.
    ValueError: it cannot be read.
  """
  if _is_llama(path):
    return _of_llama(path)
  config = folder.load_config(path)
  model = settings.make_model_config(config.model)
  step = checkpoint.find_step(path)
  shapes = {k: tuple(x.shape) for k, x in stored_params.shapes_of(path, step).items()}

  def load(wanted: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    tree = flax.traverse_util.unflatten_dict(wanted, sep="/")
    params = stored_params.load(path, tree, step, config)
    return flax.traverse_util.flatten_dict(params, sep="/")

  return Parameters(model, shapes, f"{path} at step {step}", load)


def _is_llama(path: str | os.PathLike) -> bool:
  home = Folder(path)
  return home.exists("config.json") and "model_type" in home.read_json("config.json")


def _of_llama(path: str | os.PathLike) -> Parameters:
  plan = convert.plan_llama(path)

  def load(wanted: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    entries = {entry.path: entry for entry in plan.entries}
    return {
      name: jax.device_put(plan.make(entries[name], x.dtype, np.zeros), x.sharding)
      for name, x in wanted.items()
    }

  return Parameters(plan.config, plan.shapes, os.fspath(path), load)


def find_blocks(path: str | os.PathLike) -> TransformerConfig:
  """The blocks of a language model over bytes or pieces, for configs that take them.

  It wakes no device, since settings are read before processes connect.

  Raises:
    FileNotFoundError: as `find`.
    ValueError: as `find`, or the model is another one.
  """
  if _is_llama(path):
    return convert.llama_config(path).transformer
  model = settings.make_model_config(folder.load_config(path).model)
  if not hasattr(model, "transformer"):
    raise ValueError(f"{path} is no plain language model; give a Llama's folder or run.")
  return model.transformer
