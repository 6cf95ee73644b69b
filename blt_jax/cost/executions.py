"""How often each instruction of a compiled program runs."""

import dataclasses
import re
from collections.abc import Iterator, Sequence

from blt_jax.cost import hlo

_BODY = re.compile(r"\bbody=%([\w.\-]+)")
_CONDITION = re.compile(r"\bcondition=%([\w.\-]+)")
_CONSTANT = re.compile(r"-?\d+")


@dataclasses.dataclass(frozen=True)
class Execution:
  """An instruction that runs.

  Attributes:
    instruction: which.
    computation: it is in.
    count: times per run of the program.
    fused: it is a part of a fusion, so that its results are in no memory.
  """

  instruction: hlo.Instruction
  computation: str
  count: int
  fused: bool


def walk(module: hlo.Module) -> Iterator[Execution]:
  """All instructions that run, from the entry down.

  Loops run as often as their condition's constant says, those that have none once (see
  `unknown_loops`); of a conditional, all branches count.
  """
  yield from _walk(module, module.entry, 1, fused=False)


def _walk(module: hlo.Module, computation: str, count: int, fused: bool) -> Iterator[Execution]:
  instructions = module.computations[computation]
  for instruction in instructions.values():
    yield Execution(instruction, computation, count, fused)
    opcode = instruction.opcode
    if opcode == "while":
      trips = trip_count(module, instruction, instructions)
      body = hlo.found(_BODY, instruction.attributes)[1]
      yield from _walk(module, body, count * (1 if trips is None else trips), fused)
    elif opcode in ("fusion", "call", "conditional", "async-start"):
      for called in instruction.called:
        yield from _walk(module, called, count, fused or opcode == "fusion")


def trip_count(
  module: hlo.Module, loop: hlo.Instruction, around: hlo.Computation
) -> int | None:
  """How often a loop runs; None if its text does not say.

  Args:
    module: the program.
    loop: a "while".
    around: the computation that holds it.
  """
  known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
  if known:
    return int(known[1])
  condition = module.computations[hlo.found(_CONDITION, loop.attributes)[1]]
  compare = next(i for i in condition.values() if i.is_root)
  names = list(compare.operands)
  if compare.opcode == "fusion":  # of the comparison alone, whose parameters are these
    inner = module.computations[compare.called[0]]
    compare = next(i for i in inner.values() if i.is_root)
    names = [_argument(inner[name], names) for name in compare.operands]
  if compare.opcode != "compare" or "direction=LT" not in compare.attributes:
    return None
  index, limit = (condition.get(name) for name in names)
  end = _constant(limit)
  if end is None or index is None or index.opcode != "get-tuple-element":
    return None
  return max(end - _initial(loop, index, around), 0)


def _argument(inner: hlo.Instruction, operands: Sequence[str]) -> str:
  """The name outside of a fusion of what is `inner` inside."""
  return operands[int(inner.operands[0])] if inner.opcode == "parameter" else inner.name


def _constant(instruction: hlo.Instruction | None) -> int | None:
  if instruction is None or instruction.opcode != "constant":
    return None
  value = instruction.operands[0]
  return int(value) if _CONSTANT.fullmatch(value) else None


def _initial(loop: hlo.Instruction, index: hlo.Instruction, around: hlo.Computation) -> int:
  """The value a loop's counter starts from: 0 unless it is seen to be another."""
  state = around.get(loop.operands[0])
  position = int(index.attribute("index"))
  if state is None or state.opcode != "tuple":
    return 0
  start = around.get(state.operands[position])
  while start is not None and start.opcode in ("copy", "bitcast"):
    start = around.get(start.operands[0])
  return _constant(start) or 0


def unknown_loops(module: hlo.Module) -> list[hlo.Instruction]:
  """Loops whose number of rounds depends on data; they are counted once."""
  return [
    e.instruction
    for e in walk(module)
    if e.instruction.opcode == "while"
    and trip_count(module, e.instruction, module.computations[e.computation]) is None
  ]


def operands(module: hlo.Module, execution: Execution) -> Sequence[hlo.Instruction]:
  """What an instruction takes its inputs from."""
  around = module.computations[execution.computation]
  names = execution.instruction.operands
  return [around[name] for name in names if name in around]


def operand_shapes(module: hlo.Module, execution: Execution) -> Sequence[hlo.Shape]:
  """The arrays that an instruction reads."""
  return [shape for operand in operands(module, execution) for shape in operand.shapes]
