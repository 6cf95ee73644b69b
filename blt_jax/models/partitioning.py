"""How models speak of placement: logical names only, mesh and rules come from outside.

`sharding.on_mesh` sets both; without it everything here does nothing.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import PartitionSpec

Names = tuple[str | None, ...]  # a logical name for each dimension
STATES: Names = ("batch", None, None)  # [B, S or P, D], the residual stream


def mesh_axes(names: Names) -> PartitionSpec:
  """The mesh axes that the rules in force give to logical names."""
  return nn.logical_to_mesh_axes(names) or PartitionSpec()


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
  """Places an array [n1, n2, ...] by the logical name of each dimension; None: anywhere."""
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, mesh_axes(names))


def axes_of(name: str) -> tuple[str, ...]:
  """The mesh axes, of more than one device, that a logical name spreads over."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return ()
  axes = mesh_axes((name,))[0] or ()
  return tuple(a for a in ((axes,) if isinstance(axes, str) else axes) if mesh.shape[a] > 1)


def num_shards(name: str) -> int:
  """In how many parts a dimension with a logical name is cut."""
  axes = axes_of(name)
  return math.prod(jax.sharding.get_abstract_mesh().shape[axis] for axis in axes)


def per_shard(
  function: Callable[..., Any], inputs: Sequence[Any], outputs: Any
) -> Callable[..., Any]:
  """Makes a function of whole arrays run on each device's shards of them.

  Args:
    function: of arrays (or trees of them).
    inputs: `Names` of each argument.
    outputs: `Names` of each result, in the structure of the results.

  Returns:
    The function itself where there is no mesh.
  """
  if jax.sharding.get_abstract_mesh().empty:
    return function

  def specs(tree):
    return jax.tree.map(mesh_axes, tree, is_leaf=_is_names)

  return jax.shard_map(
    function, in_specs=specs(tuple(inputs)), out_specs=specs(outputs), check_vma=False
  )


def _is_names(x):
  return isinstance(x, tuple) and all(isinstance(n, str | None) for n in x)
