"""FLOPs of Pallas kernels, of which a compiled program shows nothing but the names."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from blt_jax.cost import hlo

Key = tuple[str, tuple[tuple[int, ...], ...]]  # name of a kernel, sizes of its results


def kernel_flops(traced: Any) -> dict[Key, float]:
  """FLOPs of one run of each kernel in a program, on one chip.

  Only products count. Blocks that the mask of a splash attention kernel rules out are
  skipped and do not count.

  Args:
    traced: as `jax.jit(...).trace` gives it.
  """
  closed = traced.jaxpr
  known = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
  return dict(_kernels(closed.jaxpr, known))


def find(instruction: hlo.Instruction) -> Key | None:
  """The key of the kernel that an instruction runs; None if it runs none."""
  if 'custom_call_target="tpu_custom_call"' not in instruction.attributes:
    return None
  name = instruction.op_name.removesuffix("/pallas_call").rpartition("/")[2]
  return name, tuple(shape.sizes for shape in instruction.shapes)


def _kernels(jaxpr: Any, known: Mapping[Any, Any]) -> Iterator[tuple[Key, float]]:
  for equation in jaxpr.eqns:
    if equation.primitive.name == "pallas_call":
      yield _kernel(equation, known)
      continue
    for inner in _inner(equation):
      yield from _kernels(inner, _known_inside(equation, inner, known))


def _kernel(equation: Any, known: Mapping[Any, Any]) -> tuple[Key, float]:
  name = equation.params["name"]
  grid = equation.params["grid_mapping"].grid
  flops = _products(equation.params["jaxpr"]) * math.prod(n for n in grid if isinstance(n, int))
  if name.startswith("splash") and len(equation.invars) > 1:
    mask = known.get(_hashable(equation.invars[1]))  # per block: 0 nothing, 1 some, 2 all
    if mask is not None and np.ndim(mask) == 3:
      flops *= float(np.mean(np.asarray(mask) > 0))
  return (name, tuple(tuple(v.aval.shape) for v in equation.outvars)), flops


def _products(jaxpr: Any) -> float:
  """FLOPs of the products in a kernel's body; of a conditional, the dearest branch counts."""
  total = 0.0
  for equation in jaxpr.eqns:
    if equation.primitive.name == "dot_general":
      (contracted, _), _ = equation.params["dimension_numbers"]
      left, result = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
      total += 2.0 * math.prod(result) * math.prod(left[i] for i in contracted)
    elif equation.primitive.name == "cond":
      total += max(_products(_open(branch)) for branch in equation.params["branches"])
    else:
      rounds = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
      total += rounds * sum(map(_products, _inner(equation)))
  return total


def _inner(equation: Any) -> Iterator[Any]:
  """The programs inside of an equation."""
  for value in equation.params.values():
    for item in value if isinstance(value, tuple | list) else (value,):
      if hasattr(_open(item), "eqns"):
        yield _open(item)


def _open(jaxpr: Any) -> Any:
  """The program of a closed one."""
  return getattr(jaxpr, "jaxpr", jaxpr)


def _known_inside(equation: Any, inner: Any, known: Mapping[Any, Any]) -> dict[Any, Any]:
  """The constants among the arguments of a program inside of an equation."""
  # The first arguments of loops and conditionals may belong to another program.
  arguments = equation.invars[-len(inner.invars) :] if inner.invars else []
  result = {}
  for variable, argument in zip(inner.invars, arguments, strict=False):
    value = known.get(_hashable(argument))
    if value is not None and np.shape(value) == variable.aval.shape:
      result[variable] = value
  return result


def _hashable(argument: Any) -> Any:
  """The variable, or what no dict holds for a literal."""
  return None if hasattr(argument, "val") else argument
