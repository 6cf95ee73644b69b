"""Where the weights of decoding lie on several devices: by the rules of training."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from blt_jax.decode.language_model import LanguageModel
from blt_jax.parallel import sharding


def shard(model: LanguageModel, mesh: Mesh) -> LanguageModel:
  """The same model with its weights spread over a mesh.

  What is generated with it runs on all devices of the mesh.
  """
  weights = jax.device_put(model.weights, weight_shardings(model.weights, mesh))
  return dataclasses.replace(model, weights=weights)


def copies(model: LanguageModel, devices: Sequence[jax.Device]) -> list[LanguageModel]:
  """The same model whole on each of several devices; what one computes is on its own."""
  return [
    dataclasses.replace(model, weights=jax.device_put(model.weights, device))
    for device in devices
  ]


def weight_shardings(weights: Any, mesh: Mesh) -> Any:
  """Shardings of weights or of their shapes, by the axes that their fields name.

  What does not divide is whole on every device, and so is what has no axes: weights of a
  table of n-grams, parameters of an `UncachedReader`.
  """
  if isinstance(weights, list):
    return [weight_shardings(part, mesh) for part in weights]
  if not dataclasses.is_dataclass(weights) or isinstance(weights, type):
    return jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), weights)
  placed = {}
  for field in dataclasses.fields(weights):
    value, axes = getattr(weights, field.name), field.metadata.get("axes")
    if axes is None or value is None:
      placed[field.name] = weight_shardings(value, mesh)
    else:
      placed[field.name] = fit(axes, value.shape, mesh)
  return dataclasses.replace(weights, **placed)


def fit(axes: Sequence[str | None], shape: Sequence[int], mesh: Mesh) -> NamedSharding:
  """The mesh axes of logical ones, each once and where it divides the size."""
  placed: list[tuple[str, ...] | None] = []
  for name, size in zip(axes, shape, strict=True):
    group = sharding.axes_of(name)
    is_taken = any(axis in (used or ()) for used in placed for axis in group)
    divides = size % math.prod(mesh.shape[axis] for axis in group) == 0
    placed.append(group if group and divides and not is_taken else None)
  return NamedSharding(mesh, PartitionSpec(*placed))
