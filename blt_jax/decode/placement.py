"""Where the weights of decoding lie on several devices: by the rules of training."""

import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from blt_jax.decode.language_model import LanguageModel
from blt_jax.parallel import sharding

_AXES = {  # of matrices [out, in]
    "query_key_value": ("heads", "embed"),
    "query": ("heads", "embed"),
    "key_value": ("heads", "embed"),
    "output": ("embed", "heads"),
    "gate_up": ("mlp", "embed"),
    "down": ("embed", "mlp"),
    "patch_projection": ("heads", "embed"),
    "latent_projection": ("embed", "heads"),
    "embedding": ("vocab", "embed"),
    "hashes": ("hash_rows", "embed"),
}  # fmt: skip


def shard(model: LanguageModel, mesh: Mesh) -> LanguageModel:
  """The same model with its weights spread over a mesh.

  What is generated with it runs on all devices of the mesh.
  """
  weights = jax.device_put(model.weights, weight_shardings(model.weights, mesh))
  return LanguageModel(model.reader, weights)


def weight_shardings(weights: Any, mesh: Mesh) -> Any:
  """Shardings of a tree of weights or of their shapes; what does not divide is whole."""

  def place(path, x):
    names = [str(getattr(key, "key", "")) for key in path]
    axes = _AXES.get(names[-1], ()) if len(x.shape) == 2 else ()
    is_head = names[-1] == "output" and "layers" not in names and "cross" not in names
    if is_head:
      axes = ("vocab", "embed")
    return NamedSharding(mesh, _fit(axes, x.shape, mesh))

  return jax.tree_util.tree_map_with_path(place, weights)


def cache_shardings(state: Any, mesh: Mesh) -> Any:
  """Shardings of rows being continued: heads of keys and values over "tensor"."""

  def place(x):
    axes: list[str | None] = [None] * len(x.shape)
    if len(x.shape) >= 4:
      axes[-2] = "heads"
    return NamedSharding(mesh, _fit(axes, x.shape, mesh))

  return jax.tree.map(place, state)


def _fit(axes, shape, mesh) -> PartitionSpec:
  """The mesh axes of logical ones, each once and where it divides the size."""
  placed: list[tuple[str, ...] | None] = []
  for name, size in zip(axes, shape, strict=False):
    group = sharding.axes_of(name)
    is_taken = any(axis in (used or ()) for used in placed for axis in group)
    divides = size % math.prod(mesh.shape[axis] for axis in group) == 0
    placed.append(group if group and divides and not is_taken else None)
  return PartitionSpec(*placed)
