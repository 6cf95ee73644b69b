"""Adds up what a compiled program does on one chip."""

import collections
import dataclasses
from collections.abc import Iterator, Mapping

import jax

from blt_jax.cost import chips, collectives, executions, hlo, kernels, products, traffic

_RECOMPUTED = "rematted_computation"  # jax names so what a backward pass does again
_NO_ARRAY = {"parameter", "tuple", "get-tuple-element", "bitcast", "while", "conditional"}
_NUM_BUFFERS = 12


@dataclasses.dataclass
class Exchange:
  """All collectives of one kind over the same axes of the mesh; see `Collective`."""

  kind: str
  axes: str
  between_slices: bool
  times: int = 0
  payload_bytes: float = 0.0
  wire_bytes: float = 0.0
  seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Buffer:
  """An array that some instruction leaves in a chip's main memory."""

  num_bytes: int
  array: str
  op_name: str


@dataclasses.dataclass(frozen=True)
class Work:
  """What one run does on one chip.

  Attributes:
    product_flops: of matrix products outside of kernels.
    kernel_flops: of Pallas kernels.
    recomputed_flops: the part of both that a backward pass does a second time.
    hbm_bytes: read from and written to the main memory.
    estimated_cycles: the compiler's guess, without kernels, gathers and collectives.
    exchanges: collectives, largest payload first.
    buffers: the largest results, largest first.
    unknown: what is not counted right: loops of unknown length, unknown kernels.
  """

  product_flops: float
  kernel_flops: float
  recomputed_flops: float
  hbm_bytes: float
  estimated_cycles: float
  exchanges: tuple[Exchange, ...]
  buffers: tuple[Buffer, ...]
  unknown: tuple[str, ...]


def measure(
  module: hlo.Module,
  kernel_flops: Mapping[kernels.Key, float],
  mesh: jax.sharding.Mesh,
  chip: chips.Chip,
) -> Work:
  """Walks through a compiled program, every loop as often as it runs.

  Args:
    module: the program of one chip.
    kernel_flops: of one run of each kernel.
    mesh: of the program.
    chip: of which the mesh is made.
  """
  sums: dict[str, float] = collections.defaultdict(float)
  exchanges: dict[tuple, Exchange] = {}
  buffers: dict[Buffer, None] = {}
  unknown = {
    f"a loop, counted once: {i.op_name or i.name}" for i in executions.unknown_loops(module)
  }

  # --- Every instruction, times how often it runs
  for execution in executions.walk(module):
    instruction, count = execution.instruction, execution.count
    product = count * products.product_flops(module, execution)
    kernel = kernels.find(instruction)
    in_kernel = count * kernel_flops.get(kernel, 0.0) if kernel else 0.0
    if kernel and kernel not in kernel_flops:
      unknown.add(f"a kernel, not counted: {kernel[0]}")
    sums["product"] += product
    sums["kernel"] += in_kernel
    sums["recomputed"] += (product + in_kernel) * (_RECOMPUTED in instruction.op_name)
    sums["hbm"] += count * traffic.hbm_bytes(module, execution)
    if not execution.fused:
      sums["cycles"] += count * instruction.estimated_cycles
      buffers |= dict.fromkeys(_buffers(instruction))
    _add(exchanges, collectives.find(module, execution, mesh, chip), count)

  # --- The largest first
  return Work(
    product_flops=sums["product"],
    kernel_flops=sums["kernel"],
    recomputed_flops=sums["recomputed"],
    hbm_bytes=sums["hbm"],
    estimated_cycles=sums["cycles"],
    exchanges=tuple(sorted(exchanges.values(), key=lambda e: -e.payload_bytes)),
    buffers=tuple(sorted(buffers, key=lambda b: -b.num_bytes)[:_NUM_BUFFERS]),
    unknown=tuple(sorted(unknown)),
  )


def _buffers(instruction: hlo.Instruction) -> Iterator[Buffer]:
  if instruction.opcode in _NO_ARRAY or instruction.opcode.endswith(("-start", "-done")):
    return
  for shape in instruction.shapes:
    if shape.in_hbm:
      array = f"{shape.dtype}[{','.join(map(str, shape.sizes))}]"
      yield Buffer(shape.num_bytes, array, instruction.op_name or instruction.opcode)


def _add(
  exchanges: dict[tuple, Exchange], collective: collectives.Collective | None, count: int
) -> None:
  if collective is None:
    return
  c = collective
  key = c.kind, " x ".join(c.axes), c.between_slices
  total = exchanges.setdefault(key, Exchange(*key))
  total.times += count
  total.payload_bytes += count * c.payload_bytes
  total.wire_bytes += count * c.wire_bytes
  total.seconds += count * c.seconds
