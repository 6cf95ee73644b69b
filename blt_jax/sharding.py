"""Where arrays live: the mesh and one table from logical names to its axes."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("slices", "data", "fsdp", "tensor")  # slices of a pod talk over the slower network

RULES = (
  ("batch", ("slices", "data", "fsdp")),  # [B, ...]
  ("embed", "fsdp"),  # [D, ...] widths of the residual stream
  ("heads", "tensor"),  # [D, N * H] projections
  ("mlp", "tensor"),  # [D, F]
  ("vocab", None),  # [V, D], small
  ("hash_rows", "fsdp"),  # [tables * buckets, D]
  ("layers", None),  # [L, ...] stacked parameters
  ("norm", None),  # [D] gains
)
BATCH = PartitionSpec(("slices", "data", "fsdp"))  # [B, ...]


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, slices: int = 1) -> Mesh:
  """Arranges all devices in a mesh with axes `AXES`.

  Args:
    data: devices along "data"; -1 for as many as there are.
    fsdp: devices along "fsdp".
    tensor: devices along "tensor".
    slices: pod slices.

  Raises:
    ValueError: the sizes do not multiply to the number of devices.
  """
  count = jax.device_count()
  if data == -1:
    data = max(count // (fsdp * tensor * slices), 1)
  shape = (slices, data, fsdp, tensor)
  if math.prod(shape) != count:
    raise ValueError(
      f"config.mesh asks for {' x '.join(map(str, shape))} devices and there are {count}; "
      "their product must be the number of devices (data=-1 takes the rest)."
    )
  return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 4)


@contextlib.contextmanager
def on_mesh(mesh: Mesh) -> Iterator[None]:
  """Gives models the mesh and the meaning of their logical names while they are traced."""
  with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
    yield


def jit(function: Callable[..., Any], mesh: Mesh, **options: Any) -> Callable[..., Any]:
  """`jax.jit` of a function whose models run on the mesh."""
  compiled = jax.jit(function, **options)

  @functools.wraps(function)
  def on_the_mesh(*args):
    with on_mesh(mesh):
      return compiled(*args)

  return on_the_mesh


def check_batch_size(batch_size: int, accumulate: int, mesh: Mesh) -> None:
  """Raises ValueError unless a batch divides into equal parts for the devices."""
  parts = mesh.shape["slices"] * mesh.shape["data"] * mesh.shape["fsdp"] * accumulate
  if batch_size % parts:
    raise ValueError(
      f"config.data.batch_size {batch_size} must be a multiple of {parts}: "
      f"{parts // accumulate} devices share it, in {accumulate} accumulated parts. "
      "Change it, config.mesh or config.optimizer.accumulate."
    )


def state_shardings(boxed: Any, mesh: Mesh) -> Any:
  """Shardings of a tree whose leaves carry logical names (`nn.LogicallyPartitioned`)."""
  return nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, RULES)


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """Places a host batch on the devices, rows spread over "data" and "fsdp"."""
  sharding = NamedSharding(mesh, BATCH)
  return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}
