"""Arrays of a folder of weights, as such folders lie on disks: found first, read when asked."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
from absl import logging

from blt_jax.storage import files
from blt_jax.storage.folders import Folder
from blt_jax.storage.paths import Path

_POINTER = b"version https://git-lfs"  # what a pointer of a large-file store begins with
_INDEX = (".safetensors.index.json", ".bin.index.json")
_PICKLES = r"consolidated(\.\d+)?\.pth|pytorch_model.*\.bin"
# What compiling, sharding and recomputing modules put into the names of their parameters.
_WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Buffers that follow from the configuration.
_ROTARY = ("inv_freq", "freqs_cis", "rope.freqs", "cos_cached", "sin_cached")
_SAFE_DTYPES = {
  "F64": np.dtype("float64"), "F32": np.dtype("float32"), "F16": np.dtype("float16"),
  "BF16": np.dtype(jnp.bfloat16),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class StoredArray:
  """An array of a file, which `numpy.asarray` reads.

  Attributes:
    name: in the file.
    path: of the file.
    shape: of the array.
    dtype: in which it is stored.
    read: reads it.
  """

  name: str
  path: str
  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray]

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    array = self.read()
    with np.errstate(over="ignore"):  # parameters are float32 at most
      narrow = array.astype(np.float32) if array.dtype == np.float64 else array
    if not np.isfinite(narrow).all():
      raise ValueError(
        f"{self.name} in {self.path} holds NaN or infinite numbers, or such that float32 does "
        "not hold; these weights are damaged: download them again, or choose others."
      )
    return array.astype(dtype, copy=False) if dtype is not None else array


def read_arrays(directory: Path) -> dict[str, StoredArray]:
  """Finds all arrays of a folder, local or remote, without reading them.

  Where there is an index, it says which files count. Else all safetensors do, or where there
  are none, the pickle files that PyTorch writes.

  Args:
    directory: with `*.safetensors`, or `consolidated.pth` or `pytorch_model.bin`.

  Raises:
    FileNotFoundError: there are no weights, or a file of the index is missing.
    ValueError: a file is a pointer, damaged or no plain weights, or a name is found twice.
    ImportError: a pickle file is there and torch is not.
  """
  folder = Folder(directory)
  names = [name for name in folder.sizes() if not name.startswith(".")]
  index = _index_of(folder, names)
  listed = _listed_files(folder, index, names) if index else _unlisted_files(folder, names)
  if not listed:
    raise FileNotFoundError(
      f"{directory} holds no *.safetensors and no consolidated.pth; download the weights "
      "there first."
    )
  found: dict[str, StoredArray] = {}
  for file in listed:
    for name, array in _open(folder.path_of(file)).items():
      if index and index.get(name) != file:
        raise ValueError(
          f"{array.path} holds {name}, which the index of the folder seeks in "
          f"{index.get(name, 'no file')}; they are not of one model: download both again."
        )
      _check_once(name, found.get(name), array)
      found[name] = array
  if index and (lacking := sorted(index.keys() - found.keys())):
    raise ValueError(
      f"{lacking[0]} is not in {folder.path_of(index[lacking[0]])}, where the index of the "
      "folder seeks it; they are not of one model: download both again."
    )
  return found


def tidied(arrays: Mapping[str, Any]) -> dict[str, Any]:
  """Arrays by the names of their modules, without rotary buffers.

  Raises:
    ValueError: two of them have one name then.
  """
  result: dict[str, Any] = {}
  buffers = 0
  for name, array in arrays.items():
    plain = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
    if plain.endswith(_ROTARY):
      buffers += 1
      continue
    _check_once(plain, result.get(plain), array)
    result[plain] = array
  if buffers:
    logging.info("%d rotary buffers are not read; they follow from the configuration.", buffers)
  return result


def _check_once(name: str, first: Any, second: Any) -> None:
  if first is not None:
    places = [getattr(x, "path", "the arrays given") for x in (first, second)]
    raise ValueError(
      f"{name} is found twice, in {places[0]} and in {places[1]}; leave only the files of one "
      "model in the folder."
    )


def _index_of(folder: Folder, names: list[str]) -> dict[str, str]:
  """Name of each array -> its file, as an index says; empty where there is none."""
  is_safe = any(name.endswith(".safetensors") for name in names)
  for ending in _INDEX[:1] if is_safe else _INDEX:
    found = [name for name in names if name.endswith(ending)]
    if len(found) > 1:
      raise ValueError(
        f"{folder} holds several indices, {', '.join(found)}; leave only that of the weights "
        "that you want."
      )
    if found:
      weight_map = folder.read_json(found[0]).get("weight_map")
      if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(
          f"{folder.path_of(found[0])} has no weight_map, so it is no index of weights; "
          "download it again."
        )
      return weight_map
  return {}


def _listed_files(folder: Folder, index: Mapping[str, str], names: list[str]) -> list[str]:
  """The files of an index; says which others are left alone."""
  listed = sorted(set(index.values()))
  if missing := [name for name in listed if name not in names]:
    raise FileNotFoundError(
      f"{folder.path_of(missing[0])} is missing, and the index of the folder lists it; "
      "download it."
    )
  others = [n for n in names if n.endswith((".safetensors", ".bin")) and n not in listed]
  if others:
    logging.warning(
      "%s: the index does not list %s, which is not read. If that is what you want, remove "
      "the index.", folder, ", ".join(others),
    )  # fmt: skip
  return listed


def _unlisted_files(folder: Folder, names: list[str]) -> list[str]:
  """The files of a folder without an index."""
  if safe := [name for name in names if name.endswith(".safetensors")]:
    return safe
  pickles = [name for name in names if re.fullmatch(_PICKLES, name)]
  if not pickles and folder.exists("consolidated/consolidated.pth"):
    return ["consolidated/consolidated.pth"]
  return pickles


def _open(path: str) -> dict[str, StoredArray]:
  """The arrays of a file by name."""
  if files.read_start(path, len(_POINTER))[0] == _POINTER:
    raise ValueError(
      f"{path} is a pointer of a large-file store, not weights; run `git lfs pull` in its "
      "folder, or download the file itself."
    )
  local = files.copy_here(path)
  return _open_safe(path, local) if path.endswith(".safetensors") else _open_pickle(path, local)


def _open_safe(path: str, local: str) -> dict[str, StoredArray]:
  found = {}
  try:
    with safetensors.safe_open(local, framework="np") as file:
      for name in file.keys():  # noqa: SIM118
        part = file.get_slice(name)
        dtype, shape = _dtype(name, path, part.get_dtype()), tuple(part.get_shape())
        read = functools.partial(_read_safe, local, name)
        found[name] = StoredArray(name, path, shape, dtype, read)
  except safetensors.SafetensorError as error:
    raise ValueError(f"{path} is damaged: {error}. Download it again.") from error
  return found


def _dtype(name: str, path: str, stored: str) -> np.dtype:
  # Rotary buffers and the like may be of any type; `tidied` or the names' check meets them.
  if stored not in _SAFE_DTYPES and not name.endswith(_ROTARY):
    raise ValueError(
      f"{name} in {path} is of type {stored}; weights must be one of {tuple(_SAFE_DTYPES)}, so "
      "take those that are not quantised."
    )
  return _SAFE_DTYPES.get(stored, np.dtype("float32"))


def _read_safe(local: str, name: str) -> np.ndarray:
  with safetensors.safe_open(local, framework="np") as file:
    return file.get_tensor(name)


def _open_pickle(path: str, local: str) -> dict[str, StoredArray]:
  """The tensors of a pickle file, by the reader that runs no code in it."""
  try:
    import torch
  except ImportError as error:
    raise ImportError(f"Reading {path} needs torch: pip install 'blt_jax[convert]'.") from error
  try:
    state = torch.load(local, map_location="cpu", weights_only=True, mmap=True)
  except Exception as error:  # of pickle, of zip files or of torch
    brief = str(error).strip().partition("\n")[0]
    raise ValueError(
      f"{path} is refused: torch.load(weights_only=True) does not read it ({brief}). Other "
      "readers would run code that is in it; ask for safetensors, or weights saved anew."
    ) from error
  state = state.get("model", state) if isinstance(state, dict) else None
  if not isinstance(state, dict) or not all(
    isinstance(x, torch.Tensor) for x in state.values()
  ):
    raise ValueError(f"{path} holds no plain dictionary of tensors; save the weights anew.")
  found = {}
  for name, tensor in state.items():
    kind = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
    text = str(tensor.dtype).removeprefix("torch.")
    dtype, shape = _dtype(name, path, kind.get(text, text)), tuple(tensor.shape)
    found[name] = StoredArray(name, path, shape, dtype, functools.partial(_to_numpy, tensor))
  return found


def _to_numpy(tensor: Any) -> np.ndarray:
  """An array of the tensor's dtype, which NumPy may not know."""
  if str(tensor.dtype) != "torch.bfloat16":
    return tensor.numpy()
  return tensor.float().numpy().astype(jnp.bfloat16)  # exact
