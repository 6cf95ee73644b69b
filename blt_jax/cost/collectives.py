"""What the chips of a compiled program send each other."""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from blt_jax.cost import chips, executions, hlo

_KINDS = (
  "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all",
  "collective-permute", "collective-broadcast",
)  # fmt: skip
_SIZES = re.compile(r"\[([\d,]*)\]")
_BETWEEN_SLICES = "send"  # what the compiler makes of collectives over the data center


@dataclasses.dataclass(frozen=True)
class Collective:
  """An exchange, of one run.

  Attributes:
    kind: such as "all-gather".
    axes: of the mesh, over which chips exchange.
    payload_bytes: of the whole array that a chip gets (all-gather) or gives (others).
    wire_bytes: that a chip sends at least, in a ring where there is one.
    seconds: it takes at least, over all links of the dimensions of the torus that it spans.
    between_slices: it crosses the data center's network.
  """

  kind: str
  axes: tuple[str, ...]
  payload_bytes: int
  wire_bytes: float
  seconds: float
  between_slices: bool


def find(
  module: hlo.Module, execution: executions.Execution, mesh: jax.sharding.Mesh, chip: chips.Chip
) -> Collective | None:
  """The exchange that an instruction is; None if it is none.

  Args:
    module: the program.
    execution: of the instruction.
    mesh: of the program.
    chip: of which the mesh is made.
  """
  instruction = execution.instruction
  kind = instruction.opcode.removesuffix("-start")
  if kind == _BETWEEN_SLICES:
    payload = sum(s.num_bytes for s in executions.operand_shapes(module, execution)[:1])
    seconds = payload / chip.network_bandwidth
    return Collective("send", ("slices",), payload, payload, seconds, True)
  if kind not in _KINDS:
    return None
  if kind == "all-reduce" and _keeps_a_part(module, execution):
    kind = "reduce-scatter"
  shapes = executions.operand_shapes(module, execution)
  payload = sum(s.num_bytes for s in shapes)
  group = _group(instruction, kind, mesh.size)
  if kind == "all-gather":
    payload *= len(group)
  return _over(mesh, chip, kind, payload, group)


def _keeps_a_part(module: hlo.Module, execution: executions.Execution) -> bool:
  """A reduce-scatter is written as a fusion of an all-reduce with a slice of it."""
  around = module.computations[execution.computation].values()
  return execution.fused and any(i.opcode in ("dynamic-slice", "slice") for i in around)


def _over(
  mesh: jax.sharding.Mesh, chip: chips.Chip, kind: str, payload: int, group: Sequence[int]
) -> Collective:
  """The exchange of so many bytes by a group, positions of chips in the mesh."""
  members = mesh.devices.reshape(-1)[group]
  positions = np.stack(np.unravel_index(group, mesh.devices.shape))
  axes = tuple(
    name for name, along in zip(mesh.axis_names, positions, strict=True) if np.ptp(along)
  )
  wire = payload * _share_sent(kind, len(group))
  between = len({getattr(device, "slice_index", 0) for device in members}) > 1
  if between:
    seconds = wire / chip.network_bandwidth
  else:
    seconds = _torus_seconds(
      kind, wire, [getattr(device, "coords", ()) for device in members], chip
    )
  return Collective(kind, axes, payload, wire, seconds, between)


def _share_sent(kind: str, size: int) -> float:
  """Bytes that a chip sends per byte of payload."""
  if kind == "collective-permute":
    return 1.0
  return (2 if kind == "all-reduce" else 1) * (size - 1) / size


def _torus_seconds(
  kind: str, wire: float, coordinates: Sequence[Sequence[int]], chip: chips.Chip
) -> float:
  """At the speed of both directions of all dimensions of the torus that vary."""
  extents = [len(set(along)) for along in zip(*coordinates, strict=True)]
  spanned = [extent for extent in extents if extent > 1]
  if not spanned or not chip.link_bandwidth:
    return 0.0
  if kind == "collective-permute":
    return wire / chip.link_bandwidth
  if "all-to-all" in kind:  # on average, bytes travel a quarter of the way around
    return wire * max(spanned) / 4 / (2 * chip.link_bandwidth)
  return wire / (2 * len(spanned) * chip.link_bandwidth)


def _group(instruction: hlo.Instruction, kind: str, size: int) -> Sequence[int]:
  """Positions in the mesh of the first group of chips that exchange."""
  if kind == "collective-permute":
    pairs = re.findall(r"\{(\d+),(\d+)\}", instruction.attribute("source_target_pairs"))
    moving = [(int(a), int(b)) for a, b in pairs if a != b]
    return list(moving[0]) if moving else [0]
  text = instruction.attribute("replica_groups")
  if text.startswith("mesh["):
    return _group_of_mesh(text, instruction.attribute("device_ids"))
  if text.startswith("["):
    groups = _iota(text)
    return groups.reshape(groups.shape[0], -1)[0].tolist()
  first = re.search(r"\{([\d,]+)\}", text)
  return [int(i) for i in first[1].split(",")] if first else list(range(size))


def _iota(text: str) -> np.ndarray:
  """[2,4]<=[2,2,2]T(1,0,2): counted, reshaped, transposed, reshaped."""
  shape, _, source = text.partition("<=")
  sizes = _numbers(hlo.found(_SIZES, source or shape)[1])
  ids = np.arange(math.prod(sizes)).reshape(sizes)
  order = re.search(r"T\(([\d,]+)\)", text)
  if order:
    ids = ids.transpose(_numbers(order[1]))
  return ids.reshape(_numbers(hlo.found(_SIZES, shape)[1])) if source else ids


def _numbers(text: str) -> list[int]:
  return [int(n) for n in text.split(",") if n]


def _group_of_mesh(mesh: str, device_ids: str) -> list[int]:
  """The first group over the axes in {...} of a mesh that the compiler made up.

  Such as mesh['a'=2,'b'=4] {'b'}, or {'b':(2)2}: of the 4 along b, split as 2 x 2, the
  second factor. `device_ids`, if any, is the order of the chips, as `_iota` reads it.
  """
  chosen = {
    name: (int(before or 1), int(size or 0))
    for name, before, size in re.findall(
      r"'(\w+)'(?::\((\d+)\)(\d+))?", (mesh + device_ids).rpartition("{")[2]
    )
  }
  sizes: list[int] = []
  index: list[Any] = []
  for name, size in re.findall(r"'(\w+)'=(\d+)", mesh):
    before, inside = chosen.get(name, (int(size), 1))
    inside = inside or int(size)
    sizes += [before, inside, int(size) // (before * inside)]
    index += [0, slice(None), 0]
  order = re.match(r"\((.*)\) ", device_ids)
  ids = _iota(order[1]) if order else np.arange(math.prod(sizes))
  return ids.reshape(sizes)[tuple(index)].reshape(-1).tolist()
