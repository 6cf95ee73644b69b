"""How foreign arrays make the parameters of one model, checked before anything is made."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax.numpy as jnp
import numpy as np

from blt_jax.convert.names import Entry
from blt_jax.models.init import abstract_params

_SHOWN = 20  # problems in one message
_KEPT_DTYPES = {np.dtype(name) for name in ("float32", "float16", jnp.bfloat16)}


@dataclasses.dataclass(frozen=True)
class Plan:
  """The parameters of a model and the foreign arrays that make them.

  Attributes:
    config: of the model.
    entries: what to make of which arrays.
    arrays: by name; each has a shape and a dtype, and `numpy.asarray` reads it.
    shapes: of our parameters, by path.
    unread: names that are there and make nothing.
  """

  config: Any
  entries: tuple[Entry, ...]
  arrays: Mapping[str, Any]
  shapes: Mapping[str, tuple[int, ...]]
  unread: tuple[str, ...] = ()

  def params(self) -> Any:
    """The tree of parameters, float32."""
    return self._tree(lambda entry: jnp.asarray(self.make(entry, np.float32, np.zeros)))

  def stored(self, zeros: Callable[..., np.ndarray]) -> Any:
    """The tree of parameters as NumPy has them, in the dtypes of the foreign arrays.

    Args:
      zeros: called with a shape and a dtype, makes the array to fill.
    """
    return self._tree(lambda entry: self.make(entry, self.dtype_of(entry), zeros))

  def dtype_of(self, entry: Entry) -> np.dtype:
    """That of the foreign arrays, where they have one that parameters may have."""
    found = {np.dtype(self.arrays[name].dtype) for name in entry.names}
    return found.pop() if len(found) == 1 and found <= _KEPT_DTYPES else np.dtype("float32")

  def lines(self) -> Iterator[str]:
    """A line for each parameter: its path, shape and dtype, and what it is made of."""
    for entry in self.entries:
      first, last = entry.names[0], entry.names[-1]
      names = first if first == last else f"{first} ... {last} ({len(entry.names)})"
      place = getattr(self.arrays[first], "path", "")
      shape = " x ".join(map(str, self.shapes[entry.path]))
      yield f"{entry.path}  [{shape}] {self.dtype_of(entry)}  <- {names}  {place}".rstrip()
    yield from (f"not read: {name}" for name in self.unread)

  def make(self, entry: Entry, dtype: Any, zeros: Callable[..., np.ndarray]) -> np.ndarray:
    """One parameter, filled into what `zeros` makes of its shape and dtype."""
    out = zeros(self.shapes[entry.path], dtype)
    return entry.combine((self.arrays[name] for name in entry.names), out)

  def _tree(self, make: Callable[[Entry], Any]) -> Any:
    flat = {entry.path: make(entry) for entry in self.entries}
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def make_plan(
  model: nn.Module,
  entries: Iterable[Entry],
  arrays: Mapping[str, Any],
  unused: Iterable[str] = (),
) -> Plan:
  """Plans the parameters of a model.

  Args:
    model: the module.
    entries: what to make; it need not be everything.
    arrays: foreign arrays by name.
    unused: names that may be there without being read.

  Raises:
    ValueError: names missing arrays, arrays left over, and arrays of another shape.
  """
  entries, shapes = tuple(entries), _shapes(model)
  wanted = {n: e.foreign_shape(shapes[e.path]) for e in entries for n in e.names}
  problems = [f"missing: {n}" for n in wanted if n not in arrays]
  problems += [f"not expected: {_named(n, arrays[n])}" for n in arrays.keys() - wanted.keys()
               - set(unused)]  # fmt: skip
  problems += [
    f"{_named(n, arrays[n])} has shape {tuple(arrays[n].shape)}, the configuration asks for "
    f"{shape}"
    for n, shape in wanted.items()
    if n in arrays and tuple(arrays[n].shape) != shape
  ]
  if problems:
    shown = "\n  ".join(sorted(problems)[:_SHOWN])
    more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    raise ValueError(
      "The weights do not fit their configuration; check that both come from the same "
      f"model:\n  {shown}{more}"
    )
  unread = tuple(sorted(arrays.keys() - wanted.keys()))
  return Plan(model.config, entries, arrays, shapes, unread)


def split_as(entries: Iterable[Entry], params: Any) -> list[tuple[Entry, Any]]:
  """The parameters of a tree, each with the foreign arrays that it makes."""
  flat = flax.traverse_util.flatten_dict(params, sep="/")
  return [(entry, flat[entry.path]) for entry in entries]


def _named(name: str, array: Any) -> str:
  path = getattr(array, "path", None)
  return f"{name} of {path}" if path else name


@functools.lru_cache
def _shapes(model: nn.Module) -> Mapping[str, tuple[int, ...]]:
  """Shapes of a model's parameters by path."""
  tree = abstract_params(model)
  return {k: v.shape for k, v in flax.traverse_util.flatten_dict(tree, sep="/").items()}
