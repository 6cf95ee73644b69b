"""Weights of Meta's and Hugging Face's BLT and of Llamas as ours, and BLTs as Hugging Face's.

Directories hold what their authors publish: `config.json` and safetensors.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from blt_jax.convert import hf, llama, meta, names, safe_file
from blt_jax.convert.plan import Plan, make_plan, split_as
from blt_jax.convert.stored import read_arrays, tidied
from blt_jax.models.blt import BLT
from blt_jax.models.byte_lm import ByteLM
from blt_jax.models.config import BLTConfig, BPELMConfig, ByteLMConfig, TransformerConfig
from blt_jax.patching import PatchingConfig
from blt_jax.storage import atomic
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


@dataclasses.dataclass(frozen=True)
class Planned:
  """A BLT whose arrays are found and fit, and are not read yet.

  Attributes:
    model: its parameters, of `models.blt.BLT`.
    entropy: those of its entropy model, of `models.byte_lm.ByteLM`, or None.
    patching: how the source patches, or None where it does not say.
  """

  model: Plan
  entropy: Plan | None = None
  patching: PatchingConfig | None = None

  def read(self) -> Converted:
    """Reads everything."""
    if self.entropy is None:
      return Converted(self.model.config, self.model.params(), patching=self.patching)
    params, entropy_params = self.model.params(), self.entropy.params()
    return Converted(
      self.model.config, params, self.entropy.config, entropy_params, self.patching
    )


def plan_hf_state(config_dict: Mapping[str, Any], arrays: Mapping[str, Any]) -> Planned:
  """As `from_hf_state`, without reading arrays."""
  config = hf.blt_from_hf(config_dict)
  arrays = tidied(arrays)
  if config.tie_embeddings:
    arrays.pop("lm_head.weight", None)
  patcher = {n: arrays.pop(n) for n in list(arrays) if n.startswith("model.patcher.")}
  entropy_config = hf.byte_lm_from_hf(config_dict)
  entropy = None
  if entropy_config is not None:
    entries = names.byte_lm_entries(entropy_config, names.HF, "model.patcher.")
    entropy = make_plan(ByteLM(entropy_config), entries, patcher)
  model = make_plan(BLT(config), names.blt_entries(config, names.HF), arrays)
  return Planned(model, entropy, hf.patching_from_hf(config_dict))


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
  return plan_hf_state(config_dict, arrays).read()


def plan_meta_state(
  args: Mapping[str, Any],
  arrays: Mapping[str, Any],
  entropy_args: Mapping[str, Any] | None = None,
  entropy_arrays: Mapping[str, Any] | None = None,
) -> Planned:
  """As `from_meta_state`, without reading arrays."""
  config = meta.blt_from_meta(args)
  entries = names.blt_entries(config, names.META)
  model = make_plan(BLT(config), entries, tidied(arrays))
  if entropy_args is None or entropy_arrays is None:
    return Planned(model)
  entropy_config = meta.byte_lm_from_meta(entropy_args)
  entries = names.byte_lm_entries(entropy_config, names.META)
  return Planned(model, make_plan(ByteLM(entropy_config), entries, tidied(entropy_arrays)))


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
  return plan_meta_state(args, arrays, entropy_args, entropy_arrays).read()


def plan_hf(directory: _Path) -> Planned:
  """As `from_hf`, without reading arrays."""
  config = _read_json(Folder(directory), "config.json")
  with _naming(directory):
    if (found := config.get("model_type")) != "blt":
      raise ValueError(
        f"The config.json has model_type {found!r}, and that of a BLT of Hugging Face has "
        "'blt'. Meta's own layout is read by --from=meta, a Llama by --from=llama."
      )
    return plan_hf_state(config, read_arrays(directory))


def from_hf(directory: _Path) -> Converted:
  """Converts a directory, local or remote, with `config.json` and safetensors.

  Raises:
    FileNotFoundError: a file is missing.
    ValueError: as in `from_hf_state`, or weights are damaged; see `stored.read_arrays`.
  """
  return plan_hf(directory).read()


def plan_meta(directory: _Path) -> Planned:
  """As `from_meta`, without reading arrays."""
  folder = Folder(directory)
  args = _read_json(folder, "config.json")
  args = args.get("args", args)
  if "model_type" in args:
    raise ValueError(
      f"{directory}: The config.json has model_type {args['model_type']!r}, which Meta's "
      "layout does not. Those of Hugging Face are read by --from=hf and --from=llama."
    )
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
  arrays = read_arrays(directory)
  with _naming(directory):
    planned = plan_meta_state(args, arrays, entropy_args, entropy_arrays)
  return dataclasses.replace(planned, patching=patching)


def from_meta(directory: _Path) -> Converted:
  """Converts a directory, local or remote, in Meta's published layout.

  It holds `config.json` ({"args": ...}) and safetensors (or `consolidated.pth`, read by
  torch), `train_args.json` and `entropy_model/` with `params.json` and its weights;
  the last two are optional.

  Raises:
    FileNotFoundError: a file is missing.
    ValueError: as in `from_hf`.
  """
  return plan_meta(directory).read()


def llama_config(directory: _Path) -> BPELMConfig:
  """The config of the model of a Llama's folder, whose weights are not looked at.

  Raises:
    FileNotFoundError: there is no config.json.
    ValueError: another architecture or rope type, or a field of another type.
  """
  config = _read_json(Folder(directory), "config.json")
  with _naming(directory):
    return llama.config_from_llama(config)


def plan_llama(directory: _Path) -> Plan:
  """The whole model of a Llama's folder, over its pieces, without reading arrays.

  Raises: as `from_llama`.
  """
  config = _read_json(Folder(directory), "config.json")
  llama_config(directory)  # before weights, which may be far away
  with _naming(directory):
    return llama.plan_model(config, tidied(read_arrays(directory)))


def from_llama(directory: _Path) -> tuple[TransformerConfig, Any]:
  """Converts the blocks of a Llama of Hugging Face, without embeddings and final norm.

  Llama 2 to 3.2, and what has their architecture: SmolLM2, TinyLlama, Mistral.

  Args:
    directory: local or remote, with `config.json` and safetensors.

  Returns:
    The config of a `models.transformer.Transformer`, and its parameters in float32.

  Raises:
    FileNotFoundError: a file is missing.
    ValueError: another architecture or rope type, or weights that are damaged or do not fit.
  """
  config = _read_json(Folder(directory), "config.json")
  with _naming(directory):
    plan = llama.plan_blocks(config, tidied(read_arrays(directory)))
  return plan.config.transformer, plan.params()["transformer"]


def to_hf(directory: _Path, converted: Converted) -> None:
  """Writes `config.json` and `model.safetensors` for `BltForCausalLM.from_pretrained`.

  Raises:
    ValueError: Hugging Face's model has no counterpart for a setting.
    FileExistsError: the directory holds a model already.
  """
  c = converted
  config = hf.to_hf(c.config, c.entropy_config, c.patching)
  params = split_as(names.blt_entries(c.config, names.HF), c.params)
  if c.entropy_config is not None:
    entries = names.byte_lm_entries(c.entropy_config, names.HF, "model.patcher.")
    params += split_as(entries, c.entropy_params)
  folder, weights = Folder(directory), "model.safetensors"
  folder.make()
  if folder.exists(weights):
    raise FileExistsError(
      f"{folder.path_of(weights)} exists; choose another directory or remove it."
    )
  folder.write_json("config.json", config)
  with atomic.explaining(directory), folder.new_file(weights) as path, path.open("wb") as file:
    safe_file.write(file, params)


@contextlib.contextmanager
def _naming(directory: _Path) -> Iterator[None]:
  """Names the folder in errors of what it holds."""
  try:
    yield
  except ValueError as error:
    raise ValueError(f"{directory}: {error}") from error


def _read_json(folder: Folder, name: str) -> dict[str, Any]:
  if not folder.exists(name):
    path = folder.path_of(name)
    raise FileNotFoundError(f"{path} is missing; it describes the model in its directory.")
  return folder.read_json(name)
