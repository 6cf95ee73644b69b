"""Where arrays live: the mesh and one table from logical names to its axes."""

from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")

RULES = (
  ("embed", "fsdp"),  # [D, ...] widths of the residual stream
  ("heads", "tensor"),  # [D, N * H] projections
  ("mlp", "tensor"),  # [D, F]
  ("vocab", None),  # [V, D], small
  ("hash_rows", "fsdp"),  # [tables * buckets, D]
  ("layers", None),  # [L, ...] stacked parameters
  ("norm", None),  # [D] gains
)
BATCH = PartitionSpec(("data", "fsdp"))  # [B, ...]


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
  """Arranges all devices in a mesh with axes `AXES`.

  Args:
    data: devices along "data"; -1 for as many as there are.
    fsdp: devices along "fsdp".
    tensor: devices along "tensor".

  Raises:
    ValueError: the sizes do not multiply to the number of devices.
  """
  count = jax.device_count()
  if data == -1:
    data = max(count // (fsdp * tensor), 1)
  if data * fsdp * tensor != count:
    raise ValueError(
      f"config.mesh asks for {data} x {fsdp} x {tensor} devices and there are {count}; "
      "their product must be the number of devices (data=-1 takes the rest)."
    )
  return jax.make_mesh((data, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * 3)


def check_batch_size(batch_size: int, accumulate: int, mesh: Mesh) -> None:
  """Raises ValueError unless a batch divides into equal parts for the devices."""
  parts = mesh.shape["data"] * mesh.shape["fsdp"] * accumulate
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
