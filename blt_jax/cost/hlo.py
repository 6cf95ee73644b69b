"""Reads the text of a compiled program."""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_START = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$", re.DOTALL)
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
  r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Shape:
  """An array: type, sizes, and where the compiler puts it.

  Attributes:
    dtype: as XLA names it, such as "bf16".
    sizes: of the dimensions.
    layout: dimensions from minor to major, tiles, memory space, as XLA writes them.
  """

  dtype: str
  sizes: tuple[int, ...]
  layout: str = ""

  @property
  def in_hbm(self) -> bool:
    """Whether it lies in the main memory, not in one on the chip."""
    return re.search(r"S\([1-9]", self.layout) is None

  @property
  def num_bytes(self) -> int:
    """Bytes in memory; the minor dimensions are filled up to whole tiles."""
    sizes = list(self.sizes)
    order = [int(i) for i in self.layout.partition(":")[0].split(",") if i.strip().isdigit()]
    tile = re.search(r"T\(([\d,]+)\)", self.layout)
    if tile:
      # The last number of a tile goes with the dimension that varies fastest.
      for dim, size in zip(order, reversed(tile[1].split(",")), strict=False):
        sizes[dim] = -(-sizes[dim] // int(size)) * int(size)
    return math.prod(sizes) * _bits(self.dtype) // 8


def _bits(dtype: str) -> int:
  if dtype in ("token", "opaque"):
    return 0
  return 8 if dtype == "pred" else int(re.sub(r"^[a-z]+", "", dtype).partition("e")[0])


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One operation.

  Attributes:
    name: unique in the program.
    opcode: such as "fusion".
    shapes: of the result; several where it is a tuple.
    operands: names, or the value of a constant.
    attributes: the rest of the text.
  """

  name: str
  opcode: str
  shapes: tuple[Shape, ...]
  operands: tuple[str, ...]
  attributes: str
  is_root: bool = False

  @functools.cached_property
  def called(self) -> tuple[str, ...]:
    """Names of the computations that it runs."""
    branches = _BRANCHES.search(self.attributes)
    named = _NAME.findall(branches[1]) if branches else []
    return (*_CALLED.findall(self.attributes), *named)

  @functools.cached_property
  def op_name(self) -> str:
    """Where in the Python program it comes from; "" if unknown."""
    found = re.search(r'op_name="([^"]*)"', self.attributes)
    return found[1] if found else ""

  def attribute(self, name: str) -> str:
    """The text of an attribute up to a comma outside of brackets; "" if it has none."""
    found = re.search(rf"(?:^|[ ,]){name}=", self.attributes)
    return _balanced(self.attributes, found.end(), ",") if found else ""

  @property
  def estimated_cycles(self) -> int:
    """The compiler's guess of its duration; 0 where it has none."""
    found = _CYCLES.search(self.attributes)
    return int(found[1]) if found else 0

  @property
  def num_bytes(self) -> int:
    """Bytes of the result."""
    return sum(shape.num_bytes for shape in self.shapes)


Computation = Mapping[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Module:
  """A program.

  Attributes:
    computations: instructions by name, in order, by computation.
    entry: the computation where it begins.
  """

  computations: Mapping[str, Computation]
  entry: str


def parse(text: str) -> Module:
  """Reads what `jax.stages.Compiled.as_text` writes."""
  computations: dict[str, dict[str, Instruction]] = {}
  entry, current = "", None
  pending: list[str] = []
  # Instructions of kernels contain line breaks, so one ends where the next one begins.
  for line in [*text.splitlines(), "%end () -> () {"]:
    header = _HEADER.match(line)
    if header or _START.match(line):
      if pending and current is not None:
        instruction = _instruction("\n".join(pending))
        current[instruction.name] = instruction
      pending = [] if header else [line]
    elif pending:
      pending.append(line)
    if header:
      current = computations.setdefault(header[2], {})
      entry = header[2] if header[1] else entry
  del computations["end"]
  return Module(computations, entry)


def found(pattern: re.Pattern[str], text: str) -> re.Match[str]:
  """Where a pattern occurs first; ValueError if nowhere."""
  match = pattern.search(text)
  if match is None:
    raise ValueError(f"Cannot read this of a compiled program: {text[:500]!r}.")
  return match


def _instruction(text: str) -> Instruction:
  root, name, rest = found(_START, text).groups()
  kind = _balanced(rest, 0, " ")
  opcode, _, _ = rest[len(kind) + 1 :].partition("(")
  start = len(kind) + 1 + len(opcode) + 1
  arguments = _balanced(rest, start, ")")
  operands = tuple(_NAME.findall(arguments)) or (arguments,)
  attributes = rest[start + len(arguments) + 1 :]
  return Instruction(name, opcode, shapes_of(kind), operands, attributes, bool(root))


def shapes_of(text: str) -> tuple[Shape, ...]:
  """The arrays of a type, such as "(f32[2,3]{1,0}, s32[])"."""
  return tuple(
    Shape(dtype, tuple(int(n.lstrip("<=")) for n in sizes.split(",") if n), layout)
    for dtype, sizes, layout in _SHAPE.findall(text)
  )


def _balanced(text: str, start: int, end: str) -> str:
  """The text from `start` up to a character of `end` that is in no bracket."""
  depth, in_string = 0, False
  for i in range(start, len(text)):
    c = text[i]
    if c == '"' and text[i - 1] != "\\":
      in_string = not in_string
    elif in_string:
      continue
    elif not depth and c in end:
      return text[start:i]
    elif c in "([{":
      depth += 1
    elif c in ")]}":
      depth -= 1
      if depth < 0:
        return text[start:i]
  return text[start:]
