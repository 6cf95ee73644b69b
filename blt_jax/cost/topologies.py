"""TPU slices by name, as the compiler in libtpu describes them to a machine without TPUs; GPUs.

Names and shapes: docs.cloud.google.com/tpu/docs (v4, v5p, v5e, v6e).
"""

import dataclasses
import importlib.util
import os
from collections.abc import Mapping
from typing import Any

import jax
from jax.experimental import topologies

from blt_jax.cost import chips

_TORUS_BY_CORES = {
  8: "2x2x1", 16: "2x2x2", 32: "2x2x4", 64: "2x4x4", 128: "4x4x4", 256: "4x4x8",
  512: "4x8x8", 1024: "8x8x8", 2048: "8x8x16", 4096: "8x16x16",
}  # fmt: skip
_LARGER_BY_CORES = {8192: "16x16x16", 12_288: "16x16x24"}
_GRID_BY_CHIPS = {
  1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Family:
  """A generation of TPUs.

  Attributes:
    libtpu: its name in libtpu.
    unit: what the number in the name of a slice counts.
    shapes: the shapes of slices by that number; empty: only by shape.
    megacore: the two cores of a chip are one device.
  """

  libtpu: str
  unit: str
  shapes: Mapping[int, str]
  megacore: bool = False


FAMILIES = {
  "v4": Family("v4", "cores", _TORUS_BY_CORES, megacore=True),
  "v5p": Family("v5p", "cores", _TORUS_BY_CORES | _LARGER_BY_CORES, megacore=True),
  "v5e": Family("v5e", "chips", _GRID_BY_CHIPS),
  "v5litepod": Family("v5e", "chips", _GRID_BY_CHIPS),
  "v6e": Family("v6e", "chips", _GRID_BY_CHIPS),
  "tpu7x": Family("tpu7x", "chips", {}),
}


@dataclasses.dataclass(frozen=True)
class Topology:
  """One or several equal slices.

  Attributes:
    name: as the user gave it.
    num_slices: slices, joined by the data center's network.
    devices: all of them.
    chip: what one device can do.
  """

  name: str
  num_slices: int
  devices: tuple[Any, ...]
  chip: chips.Chip


def get_topology(name: str, num_slices: int = 1) -> Topology:
  """Looks a slice up.

  Args:
    name: as users say it, "v4-128" or "v5litepod-16", or as libtpu does, "v4:4x4x4".
    num_slices: how many such slices.

  Raises:
    ValueError: no such slice; lists those known.
    ModuleNotFoundError: libtpu is not installed.
  """
  family, shape = parse(name)

  # --- Ask libtpu for the slice
  if importlib.util.find_spec("libtpu") is None:
    raise ModuleNotFoundError("Compiling for TPUs needs libtpu: pip install 'blt_jax[tpu]'")
  options: dict[str, Any] = {"num_slices": num_slices} if num_slices > 1 else {}
  if family.megacore:
    options["chip_config_name"] = "megacore"
  if shape == "1x1":
    options["chips_per_host_bounds"] = [1, 1, 1]
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # else it asks a metadata server who it is
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # processes need share no chips
  try:
    found = topologies.get_topology_desc(
      platform="tpu", topology_name=f"{family.libtpu}:{shape}", **options
    )
  except jax.errors.JaxRuntimeError as error:
    raise ValueError(f"libtpu refuses topology {name!r}: {error}. {_known()}") from error

  # --- What it is made of
  devices: tuple[Any, ...] = tuple(found.devices)
  chip = chips.find_chip(devices[0].device_kind)
  if chip is None:
    raise ValueError(f"{name!r} is made of {devices[0].device_kind}, unknown to chips.py.")
  return Topology(name, num_slices, devices, chip)


def local_gpus() -> Topology:
  """The GPUs of this machine, each with the memory that JAX may take of it.

  Raises:
    ValueError: JAX sees none.
  """
  devices = tuple(jax.devices())
  kind, platform = devices[0].device_kind, devices[0].platform
  if platform != "gpu":
    raise ValueError(
      f"JAX sees no GPU here, only {platform}; name the topology of a TPU slice, such as v4-8, "
      "which compiles on any machine."
    )
  chip = chips.find_chip(kind) or chips.Chip(kind, 0.0, 0.0, 0.0)
  limit = devices[0].memory_stats()["bytes_limit"]
  return Topology("this machine", 1, devices, dataclasses.replace(chip, hbm_bytes=limit))


def parse(name: str) -> tuple[Family, str]:
  """Family and shape, such as "4x4x4", of a slice's name.

  Raises:
    ValueError: no such slice; lists those known.
  """
  generation, colon, shape = name.partition(":")
  if colon and generation in FAMILIES:
    return FAMILIES[generation], shape
  generation, _, size = name.rpartition("-")
  family = FAMILIES.get(generation)
  if family is None or not size.isdigit() or int(size) not in family.shapes:
    raise ValueError(f"Unknown topology {name!r}. {_known()}")
  return family, family.shapes[int(size)]


def _known() -> str:
  lines = [
    f"{generation}-N with N {family.unit} of " + ", ".join(map(str, family.shapes))
    for generation, family in FAMILIES.items()
    if family.shapes
  ]
  libtpu = ", ".join(sorted({family.libtpu for family in FAMILIES.values()}))
  return f"Known are: {'; '.join(lines)}; and shapes of {libtpu}, such as v4:4x4x4."
