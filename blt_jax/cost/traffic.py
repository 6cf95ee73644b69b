"""Bytes that a compiled program reads from and writes to a chip's main memory.

Counted at the borders of fusions. A fusion that takes a slice of an array reads that slice,
one that writes a slice into an array writes that slice, a gather reads the rows it gets.
What the compiler keeps in memories on the chip costs nothing.
"""

from collections.abc import Iterable

from blt_jax.cost import executions, hlo

# Names for a value, or buffers and waits; loops and calls are counted inside.
_FREE = {
  "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call",
  "conditional", "after-all", "partition-id", "replica-id", "iota", "opt-barrier",
  "copy-done", "slice-done", "dynamic-slice-done", "dynamic-update-slice-done",
  "async-done", "async-update", "send-done", "recv-done",
}  # fmt: skip
_SLICING = {"dynamic-slice", "slice", "gather"}


def hbm_bytes(module: hlo.Module, execution: executions.Execution) -> int:
  """Bytes that one run of an instruction reads and writes; 0 inside of fusions."""
  instruction = execution.instruction
  opcode = instruction.opcode
  if execution.fused or opcode in _FREE or "AllocateBuffer" in instruction.attributes:
    return 0
  if opcode.endswith(("-start", "-done")) and not opcode.startswith(("copy", "slice")):
    return 0 if opcode.endswith("-done") else _in_hbm(instruction.shapes)
  if opcode in ("copy-start", "slice-start"):
    return _transfer(instruction)
  if opcode == "fusion":
    return _fusion(module, execution)
  if opcode == "dynamic-update-slice":
    return 2 * _in_hbm(executions.operand_shapes(module, execution)[1:2])
  written = _in_hbm(instruction.shapes)
  if opcode in _SLICING:
    return 2 * written
  return written + _in_hbm(executions.operand_shapes(module, execution))


def _in_hbm(shapes: Iterable[hlo.Shape]) -> int:
  return sum(shape.num_bytes for shape in shapes if shape.in_hbm)


def _transfer(instruction: hlo.Instruction) -> int:
  """Between memories, or within the main one: the smaller side is what moves."""
  moved = min(shape.num_bytes for shape in instruction.shapes[:2])
  return moved * sum(shape.in_hbm for shape in instruction.shapes[:2])


def _fusion(module: hlo.Module, execution: executions.Execution) -> int:
  inner = module.computations[execution.instruction.called[0]]
  total, updated = 0, 0
  for index, operand in enumerate(executions.operands(module, execution)):
    if sum(shape.in_hbm for shape in operand.shapes):
      read, written = _touched(module, inner, _parameter(inner, index))
      total += read + written
      updated += operand.num_bytes if written else 0
  return total + max(_in_hbm(execution.instruction.shapes) - updated, 0)


def _parameter(computation: hlo.Computation, index: int) -> hlo.Instruction:
  return next(
    i for i in computation.values() if i.opcode == "parameter" and i.operands == (str(index),)
  )


def _touched(
  module: hlo.Module, computation: hlo.Computation, value: hlo.Instruction
) -> tuple[int, int]:
  """Bytes of a fusion's operand that are read, and that are overwritten in place."""
  read = written = 0
  for user in computation.values():
    for position, name in enumerate(user.operands):
      if name == value.name and user.opcode != "parameter":
        more = _touched_by(module, computation, value, user, position)
        read, written = read + more[0], written + more[1]
  return min(read, value.num_bytes), min(written, value.num_bytes)


def _touched_by(
  module: hlo.Module,
  computation: hlo.Computation,
  value: hlo.Instruction,
  user: hlo.Instruction,
  position: int,
) -> tuple[int, int]:
  """Likewise, of one user that has the value as its operand at `position`."""
  if user.opcode in ("bitcast", "reshape"):
    return _touched(module, computation, user)
  if user.opcode == "fusion":  # fusions may stand in fusions
    inner = module.computations[user.called[0]]
    return _touched(module, inner, _parameter(inner, position))
  if position == 0 and user.opcode in _SLICING:
    return user.num_bytes, 0
  if position == 0 and user.opcode == "dynamic-update-slice":
    return 0, computation[user.operands[1]].num_bytes
  if position == 0 and user.opcode == "scatter":
    changed = computation[user.operands[2]].num_bytes
    return changed, changed
  return value.num_bytes, 0
