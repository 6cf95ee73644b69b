"""FLOPs of the matrix products in a compiled program; TPUs write most as convolutions."""

import math
import re

import numpy as np

from blt_jax.cost import executions, hlo

_DIM_LABELS = re.compile(r"(\w+)_(\w+)->(\w+)")


def product_flops(module: hlo.Module, execution: executions.Execution) -> float:
  """FLOPs of one run of an instruction: 0 unless it is a dot or a convolution."""
  opcode = execution.instruction.opcode
  if opcode == "dot":
    return _dot(module, execution)
  return _convolution(module, execution) if opcode == "convolution" else 0.0


def _dot(module: hlo.Module, execution: executions.Execution) -> float:
  left = executions.operand_shapes(module, execution)[0]
  contracted = execution.instruction.attribute("lhs_contracting_dims")
  length = math.prod(left.sizes[int(i)] for i in re.findall(r"\d+", contracted))
  return 2.0 * math.prod(execution.instruction.shapes[0].sizes) * length


def _convolution(module: hlo.Module, execution: executions.Execution) -> float:
  instruction = execution.instruction
  image, kernel = executions.operand_shapes(module, execution)[:2]
  names = hlo.found(_DIM_LABELS, instruction.attribute("dim_labels"))
  image_dims, kernel_dims, output_dims = names.groups()
  sizes = dict(zip(output_dims, instruction.shapes[0].sizes, strict=True))
  features = kernel.sizes[kernel_dims.index("i")] * sizes["f"] * sizes["b"]
  groups = int(instruction.attribute("batch_group_count") or 1)
  positions = 1
  for i, dim in enumerate(d for d in sorted(sizes) if d.isdigit()):
    window = _window(instruction, i)
    window |= dict(
      image=image.sizes[image_dims.index(dim)],
      kernel=kernel.sizes[kernel_dims.index(dim)],
      output=sizes[dim],
    )
    positions *= _products_along(**window)
  return 2.0 * features * positions / groups


def _window(instruction: hlo.Instruction, dim: int) -> dict[str, int]:
  """Stride, padding and dilations of a spatial dimension.

  A product of batches of matrices is a convolution whose window slides over the batch and
  mostly over zeros between its members, which the hardware leaves out.
  """
  text = instruction.attribute("window")

  def at(name, default):
    found = re.search(rf"\b{name}=([\d_x\-]+)", text)
    return found[1].split("x")[dim] if found else default

  low, _, _ = at("pad", "0_0").partition("_")
  return dict(
    stride=int(at("stride", "1")),
    low=int(low),
    spread=int(at("lhs_dilate", "1")),
    step=int(at("rhs_dilate", "1")),
  )


def _products_along(
  image: int, kernel: int, output: int, stride: int, low: int, spread: int, step: int
) -> int:
  """Pairs (output, kernel) positions of a dimension that meet an element of the image."""
  total, starts = 0, np.arange(output) * stride - low
  for k in range(kernel):
    at = starts + k * step
    inside = (at >= 0) & (at < (image - 1) * spread + 1) & (at % spread == 0)
    total += int(inside.sum())
  return total
