"""A digest of each array of a tree, the same however its arrays lie on devices."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_PIECE = 2**22  # words of an array of the host at a time
_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}  # by bytes of an element


def names_of(tree: Any) -> dict[str, Any]:
  """Path -> leaf of a tree, such as "params/embed/embedding"."""
  leaves, _ = jax.tree.flatten_with_path(tree)
  return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in leaves}


def digests_of(tree: Any) -> dict[str, str]:
  """The digest of each array, such as "float32 0a1b2c3d".

  Computed where the arrays lie, those of the host in pieces, so that they need not be in
  memory whole: all processes that hold parts of them call it together. Any
  change of one element changes it, and others do but for one in 2^32.

  Args:
    tree: of arrays of any shape.

  Returns:
    Path of each array -> its dtype, and the weighted sum of its words modulo 2^32.
  """
  arrays = names_of(tree)
  placed = {name: x for name, x in arrays.items() if isinstance(x, jax.Array)}
  sums = dict(zip(placed, jax.device_get(_sums(list(placed.values()))), strict=True))
  sums |= {name: _sum_on_host(x) for name, x in arrays.items() if name not in placed}
  return {
    name: f"{np.dtype(array.dtype).name} {int(sums[name]):08x}"
    for name, array in arrays.items()
  }


def differing(tree: Any, saved: Mapping[str, str]) -> list[str]:
  """The paths of arrays whose digests are not those that were saved; see `digests_of`."""
  found = digests_of(tree)
  return sorted(name for name in found if found[name] != saved.get(name))


@jax.jit
def _sums(arrays: list[jax.Array]) -> list[jax.Array]:
  return [_weighted_sum(x) for x in arrays]


def _weighted_sum(x: jax.Array) -> jax.Array:
  """uint32 [] of an array of any shape."""
  if x.dtype == jnp.bool_:
    x = x.astype(jnp.uint8)
  words = jax.lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize]).astype(jnp.uint32)
  index = jnp.zeros(words.shape, jnp.uint32)  # of each word in the whole array
  for axis, size in enumerate(words.shape):
    index = index * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
  return jnp.sum(words * _odd(index), dtype=jnp.uint32)


def _sum_on_host(x: np.ndarray) -> int:
  """The same of a NumPy array."""
  words = np.ascontiguousarray(x).reshape(-1).view(np.dtype(_WORDS[x.dtype.itemsize]))
  total = 0
  for begin in range(0, words.size, _PIECE):
    piece = words[begin : begin + _PIECE].astype(np.uint32)
    index = np.arange(begin, begin + piece.size, dtype=np.uint64).astype(np.uint32)
    total += int(np.sum(piece * _odd(index), dtype=np.uint32))
  return total % 2**32


def _odd(index: Any) -> Any:
  """Weights that look random; odd ones lose no bit of a word."""
  mixed = (index + 1) * np.uint32(0x9E3779B1)
  mixed = (mixed ^ mixed >> 15) * np.uint32(0x85EBCA77)
  return (mixed ^ mixed >> 13) | 1
