"""Weights of Meta's and Hugging Face's BLT as ours, and back to Hugging Face.

Directories hold what their authors publish: `config.json` and safetensors.
"""

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax.numpy as jnp
import numpy as np
import safetensors.flax

from blt_jax.convert import hf, meta, names
from blt_jax.models.blt import BLT
from blt_jax.models.byte_lm import ByteLM
from blt_jax.models.config import BLTConfig, ByteLMConfig
from blt_jax.models.init import abstract_params
from blt_jax.patching import PatchingConfig
from blt_jax.storage import atomic, files
from blt_jax.storage.folders import Folder

_Path = str | os.PathLike


@dataclasses.dataclass(frozen=True)
class Converted:
  """A BLT and, where the source has one, its entropy model.

  Attributes:
    config: of the BLT.
    params: float32 parameter tree of `models.blt.BLT`.
    entropy_config: of the entropy model, or None.
    entropy_params: parameter tree of `models.byte_lm.ByteLM`, or None.
    patching: how the source patches, or None where it does not say.
  """

  config: BLTConfig
  params: Any
  entropy_config: ByteLMConfig | None = None
  entropy_params: Any = None
  patching: PatchingConfig | None = None


def from_hf_state(
  config_dict: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> Converted:
  """Converts a Hugging Face `BltForCausalLM`.

  Args:
    config_dict: its `BltConfig` as a dict.
    arrays: its state dict, name -> array.

  Raises:
    ValueError: the configuration is not supported, or arrays are missing, left over or
      misshapen.
  """
  config = hf.blt_from_hf(config_dict)
  arrays = dict(arrays)
  if config.tie_embeddings:
    arrays.pop("lm_head.weight", None)
  patcher = {n: arrays.pop(n) for n in list(arrays) if n.startswith("model.patcher.")}
  entropy_config = hf.byte_lm_from_hf(config_dict)
  entropy_params = None
  if entropy_config is not None:
    entries = names.byte_lm_entries(entropy_config, names.HF, "model.patcher.")
    entropy_params = _assemble(ByteLM(entropy_config), entries, patcher)
  entries = names.blt_entries(config, names.HF)
  params = _assemble(BLT(config), entries, arrays)
  patching = hf.patching_from_hf(config_dict)
  return Converted(config, params, entropy_config, entropy_params, patching)


def from_meta_state(
  args: Mapping[str, Any],
  arrays: Mapping[str, np.ndarray],
  entropy_args: Mapping[str, Any] | None = None,
  entropy_arrays: Mapping[str, np.ndarray] | None = None,
) -> Converted:
  """Converts Meta's `ByteLatentTransformer` and, if given, its `LMTransformer`.

  Args:
    args: `ByteLatentTransformerArgs` as a dict.
    arrays: its state dict, name -> array.
    entropy_args: `LMTransformerArgs` as a dict.
    entropy_arrays: its state dict.

  Raises:
    ValueError: as in `from_hf_state`.
  """
  config = meta.blt_from_meta(args)
  entries = names.blt_entries(config, names.META)
  params = _assemble(BLT(config), entries, arrays)
  if entropy_args is None or entropy_arrays is None:
    return Converted(config, params)
  entropy_config = meta.byte_lm_from_meta(entropy_args)
  entries = names.byte_lm_entries(entropy_config, names.META)
  entropy_params = _assemble(ByteLM(entropy_config), entries, entropy_arrays)
  return Converted(config, params, entropy_config, entropy_params)


def from_hf(directory: _Path) -> Converted:
  """Converts a directory, local or remote, with `config.json` and safetensors.

  Raises:
    FileNotFoundError: a file is missing.
    ValueError: as in `from_hf_state`.
  """
  return from_hf_state(_read_json(Folder(directory), "config.json"), read_arrays(directory))


def from_meta(directory: _Path) -> Converted:
  """Converts a directory, local or remote, in Meta's published layout.

  It holds `config.json` ({"args": ...}) and safetensors (or `consolidated.pth`, read by
  torch), `train_args.json` and `entropy_model/` with `params.json` and its weights;
  the last two are optional.

  Raises:
    FileNotFoundError: a file is missing.
    ValueError: as in `from_hf_state`.
  """
  folder = Folder(directory)
  args = _read_json(folder, "config.json")
  args = args.get("args", args)
  entropy_args = entropy_arrays = patching = None
  if folder.exists("entropy_model"):
    entropy_args = _read_json(folder, "entropy_model/params.json")["entropy_model"]
    # Meta's loader sets these whatever the file says.
    entropy_args |= {"attn_impl": "xformers", "attn_bias_type": "local_block_causal"}
    entropy_arrays = read_arrays(folder.path_of("entropy_model"))
  if folder.exists("train_args.json"):
    train_args = _read_json(folder, "train_args.json")
    patcher_args = train_args.get("data", {}).get("patcher_args") or {}
    patching = meta.patching_from_meta(patcher_args)
  converted = from_meta_state(args, read_arrays(directory), entropy_args, entropy_arrays)
  return dataclasses.replace(converted, patching=patching)


def to_hf(directory: _Path, converted: Converted) -> None:
  """Writes `config.json` and `model.safetensors` for `BltForCausalLM.from_pretrained`.

  Raises:
    ValueError: Hugging Face's model has no counterpart for a setting.
    FileExistsError: the directory holds a model already.
  """
  c = converted
  config = hf.to_hf(c.config, c.entropy_config, c.patching)
  arrays = _split(names.blt_entries(c.config, names.HF), c.params)
  if c.entropy_config is not None:
    entries = names.byte_lm_entries(c.entropy_config, names.HF, "model.patcher.")
    arrays |= _split(entries, c.entropy_params)
  folder, weights = Folder(directory), "model.safetensors"
  folder.make()
  if folder.exists(weights):
    raise FileExistsError(
      f"{folder.path_of(weights)} exists; choose another directory or remove it."
    )
  folder.write_json("config.json", config)
  tensors = {k: jnp.asarray(v) for k, v in arrays.items()}
  with atomic.explaining(directory), folder.new_file(weights) as path:
    safetensors.flax.save_file(tensors, path, {"format": "pt"})


def read_arrays(directory: _Path) -> dict[str, np.ndarray]:
  """Reads all safetensors of a directory, or else its `consolidated.pth`.

  Raises:
    FileNotFoundError: there is neither.
    ImportError: a .pth file is there and torch is not.
  """
  folder = Folder(directory)
  arrays: dict[str, np.ndarray] = {}
  for name in folder.sizes():
    if name.endswith(".safetensors"):
      path = files.copy_here(folder.path_of(name))
      arrays |= {k: np.asarray(v) for k, v in safetensors.flax.load_file(path).items()}
  if arrays:
    return arrays
  for name in ("consolidated.pth", "consolidated/consolidated.pth"):
    if folder.exists(name):
      return _read_pth(files.copy_here(folder.path_of(name)))
  raise FileNotFoundError(
    f"{directory} holds no *.safetensors and no consolidated.pth; download the weights "
    "there first."
  )


def _read_pth(path: str) -> dict[str, np.ndarray]:
  try:
    import torch
  except ImportError as error:
    raise ImportError(f"Reading {path} needs torch: pip install 'blt_jax[convert]'.") from error
  state = torch.load(path, map_location="cpu", weights_only=True)
  state = state.get("model", state)
  return {name: tensor.float().numpy() for name, tensor in state.items()}


def _assemble(
  model: nn.Module, entries: list[names.Entry], arrays: Mapping[str, np.ndarray]
) -> Any:
  """The parameters of a model from foreign arrays."""
  flat = names.assemble(entries, arrays, _shapes(model))
  return flax.traverse_util.unflatten_dict(flat, sep="/")


@functools.lru_cache
def _shapes(model: nn.Module) -> Mapping[str, tuple[int, ...]]:
  """Shapes of a model's parameters by path."""
  tree = abstract_params(model)
  return {k: v.shape for k, v in flax.traverse_util.flatten_dict(tree, sep="/").items()}


def _split(entries, params) -> dict[str, np.ndarray]:
  flat = flax.traverse_util.flatten_dict(params, sep="/")
  return {k: v for e in entries for k, v in e.split(np.asarray(flat[e.path])).items()}


def _read_json(folder: Folder, name: str) -> dict[str, Any]:
  if not folder.exists(name):
    path = folder.path_of(name)
    raise FileNotFoundError(f"{path} is missing; it describes the model in its directory.")
  return folder.read_json(name)
