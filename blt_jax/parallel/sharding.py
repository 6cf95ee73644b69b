"""Where arrays live: the mesh and one table from logical names to its axes."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("slices", "data", "fsdp", "tensor")  # slices of a pod talk over the slower network

RULES = (
  ("batch", ("slices", "data", "fsdp")),  # [B, ...]
  ("bytes", "tensor"),  # [B, S], where devices with the same rows share a row's bytes
  ("embed", "fsdp"),  # [D, ...] widths of the residual stream
  ("heads", "tensor"),  # [D, N * H] projections
  ("mlp", "tensor"),  # [D, F]
  # [N * H, D], [F, D]: with "fsdp" on D, gradients would be all-reduced on TPU.
  ("contracted", ("tensor", "fsdp")),
  ("vocab", None),  # [V, D], small
  ("hash_rows", ("data", "fsdp", "tensor")),  # [hash_rows, D], over all chips of a slice
  ("layers", None),  # [L, ...] stacked parameters
  ("norm", None),  # [D] gains
)
LARGE = 2**24  # elements of a parameter that may not be whole on every device
BATCH = PartitionSpec(dict(RULES)["batch"])  # [B, S]


def make_mesh(
  data: int = -1,
  fsdp: int = 1,
  tensor: int = 1,
  slices: int = 1,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """Arranges devices in a mesh with axes `AXES`, neighbours next to each other.

  Args:
    data: devices along "data"; -1 for as many as there are.
    fsdp: devices along "fsdp".
    tensor: devices along "tensor".
    slices: pod slices.
    devices: which ones, present or of a topology to compile for; by default all.

  Raises:
    ValueError: the sizes do not multiply to the number of devices, or do not fit the
      slices or the torus that they form.
  """
  devices = jax.devices() if devices is None else devices
  if data == -1:
    data = max(len(devices) // max(fsdp * tensor * slices, 1), 1)
  shape = (slices, data, fsdp, tensor)
  if min(shape) < 1 or math.prod(shape) != len(devices):
    raise ValueError(
      f"config.mesh asks for {' x '.join(map(str, shape))} devices ({' x '.join(AXES)}) and "
      f"there are {len(devices)}; its sizes must be positive and their product the number of "
      "devices (data=-1 takes the rest)."
    )
  return Mesh(_arrange(shape, devices), AXES, axis_types=(AxisType.Auto,) * 4)


def _arrange(shape, devices) -> np.ndarray:
  """Devices in the shape of the mesh, axes along links of the network where it has any."""
  slices = shape[0]
  present = len({getattr(device, "slice_index", 0) for device in devices})
  if devices[0].platform == "tpu" and slices != present:
    raise ValueError(
      f"config.mesh.slices is {slices} and the devices form {present} pod slices; they must "
      "be equal."
    )
  try:
    if slices == present > 1:
      inside, across = (1, *shape[1:]), (slices, 1, 1, 1)
      return mesh_utils.create_hybrid_device_mesh(inside, across, devices)
    return mesh_utils.create_device_mesh(shape, devices)
  except NotImplementedError as error:  # says which axis found no place
    sizes = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, shape, strict=True))
    raise ValueError(
      f"config.mesh {sizes} does not fit the torus of these devices: every size must be the "
      "product of whole dimensions, as 16 x 4 is on 4 x 4 x 4 but 8 x 8 is not. Choose other "
      f"sizes. {error}"
    ) from error


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


def axes_of(name: str | None) -> tuple[str, ...]:
  """The mesh axes that `RULES` give to a logical name."""
  axes = dict(RULES).get(name) if name else None
  return (axes,) if isinstance(axes, str) else axes or ()


def num_row_shards(mesh: Mesh) -> int:
  """How many parts the rows of a batch are cut into."""
  return math.prod(mesh.shape[axis] for axis in axes_of("batch"))


def check_batch_size(batch_size: int, accumulate: int, mesh: Mesh) -> None:
  """Raises ValueError unless a batch divides into equal parts for the devices."""
  parts = num_row_shards(mesh) * accumulate
  if batch_size % parts:
    raise ValueError(
      f"config.data.batch_size {batch_size} must be a multiple of {parts}: "
      f"{parts // accumulate} devices share it, in {accumulate} accumulated parts. "
      "Change it, config.mesh or config.optimizer.accumulate."
    )


def state_shardings(boxed: Any, mesh: Mesh) -> Any:
  """Shardings of a tree whose leaves carry logical names (`nn.LogicallyPartitioned`).

  Raises:
    ValueError: a parameter has a name without a rule, a size that its mesh axes do not
      divide, two sizes on one axis, or is large and whole on all devices along "fsdp".
  """

  def place(path, leaf):
    names = leaf.names if _is_boxed(leaf) else ()
    shape = leaf.value.shape if _is_boxed(leaf) else leaf.shape
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return NamedSharding(mesh, _spec(f"{name} {shape}", shape, names, mesh))

  return jax.tree_util.tree_map_with_path(place, boxed, is_leaf=_is_boxed)


def _is_boxed(leaf):
  return isinstance(leaf, nn.LogicallyPartitioned)


def _spec(parameter: str, shape, names, mesh) -> PartitionSpec:
  """The mesh axes of a parameter, whose name and shape errors begin with."""
  rules = dict(RULES)
  unknown = [name for name in names if name is not None and name not in rules]
  if unknown:
    raise ValueError(f"{parameter}: no rule in sharding.RULES for {unknown}.")
  axes = [axes_of(name) for name in names]
  for size, name, group in zip(shape, names, axes, strict=False):
    parts = math.prod(mesh.shape[axis] for axis in group)
    if size % parts:
      setting = "hash_rows_multiple_of" if name == "hash_rows" else "sizes"
      raise ValueError(
        f"{parameter}: {size} ({name}) must be a multiple of {parts}, the devices along "
        f"{group}. Change config.mesh, or the model's {setting}."
      )
  used = [axis for group in axes for axis in group]
  if len(set(used)) < len(used):
    raise ValueError(f"{parameter}: the names {names} put two dimensions on one mesh axis.")
  if math.prod(shape) > LARGE and mesh.shape["fsdp"] > 1 and "fsdp" not in used:
    raise ValueError(
      f'{parameter}: too large to be whole on all {mesh.shape["fsdp"]} devices along "fsdp"; '
      f"give one of its dimensions, now {names}, a name that sharding.RULES spreads over it."
    )
  return PartitionSpec(*(group or None for group in axes))


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """Places a host batch on the devices, rows spread over "data" and "fsdp".

  Args:
    batch: arrays [..., B, S], such as tokens [B, S] and ngram_ids [T, B, S].
    mesh: the devices.
  """
  put = jax.make_array_from_process_local_data
  return {k: put(batch_sharding(mesh, v.ndim), v) for k, v in batch.items()}


def batch_sharding(mesh: Mesh, ndim: int) -> NamedSharding:
  """How an array of a batch, [..., B, S], lies on the devices."""
  return NamedSharding(mesh, PartitionSpec(*[None] * (ndim - 2), *BATCH))
