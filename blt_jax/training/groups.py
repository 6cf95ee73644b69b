"""Groups of parameters, by name, that learn at their own rate, later, or not at all."""

import dataclasses
import fnmatch
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import optax

REST = "rest"  # the label of parameters in no group


@dataclasses.dataclass(frozen=True)
class Group:
  """Parameters whose path matches a pattern, and how they learn.

  Attributes:
    pattern: of paths such as "latent/transformer/layers/mlp/up/kernel"; "*" is any part.
    learning_rate_scale: factor of the learning rate, and so of the weight decay.
    weight_decay_scale: another factor of the weight decay.
    freeze: they stay as they are; without `thaw` they have no optimizer state.
    thaw: step from which they learn; until then they are frozen, and their gradients are
      averaged.
  """

  pattern: str
  learning_rate_scale: float = 1.0
  weight_decay_scale: float = 1.0
  freeze: bool = False
  thaw: int | None = None

  def __post_init__(self):
    name = f"config.optimizer.groups[{self.pattern!r}]"
    for field in ("learning_rate_scale", "weight_decay_scale"):
      value = getattr(self, field)
      if type(value) not in (int, float) or not 0 <= value < float("inf"):
        raise ValueError(f"{name} has {field} {value!r}; it must be a number >= 0.")
    if self.thaw is not None and (type(self.thaw) is not int or self.thaw < 0):
      raise ValueError(f"{name} has thaw {self.thaw!r}; it must be a step, or None.")
    if type(self.freeze) is not bool:
      raise ValueError(f"{name} has freeze {self.freeze!r}; it must be True or False.")
    if self.is_frozen and (self.learning_rate_scale, self.weight_decay_scale) != (1, 1):
      raise ValueError(f"{name} is frozen, so its scales would do nothing; leave them out.")

  @property
  def is_frozen(self) -> bool:
    """Whether they never learn."""
    return self.freeze and self.thaw is None

  @property
  def first_step(self) -> int:
    """The step from which they learn."""
    return self.thaw or 0


def label_of(number: int) -> str:
  """The label of the parameters of a group."""
  return f"group_{number}"


def update_ratios(groups: Sequence[Group], params: Any, updates: Any) -> dict[str, jax.Array]:
  """How far an update moves the parameters of each group.

  Args:
    groups: of the optimizer; empty where there are none to compare.
    params: tree of arrays of any shape.
    updates: of the same shapes, to be added to them.

  Returns:
    `update_ratio/PATTERN`, and `update_ratio/rest` of parameters in no group -> float32 [],
    the norm of the update over that of the parameters.
  """
  if not groups:
    return {}
  names = {label_of(number): group.pattern for number, group in enumerate(groups)}
  parts: dict[str, tuple[list[jax.Array], list[jax.Array]]] = {}
  for label, x, change in zip(
    *map(jax.tree.leaves, (labels(groups, params), params, updates)), strict=True
  ):
    values, changes = parts.setdefault(names.get(label, REST), ([], []))
    values.append(x)
    changes.append(change)
  return {
    f"update_ratio/{name}": optax.tree.norm(changes) / optax.tree.norm(values)
    for name, (values, changes) in sorted(parts.items())
  }


def labels(groups: Sequence[Group], params: Any) -> Any:
  """The label of each parameter: that of the first group whose pattern matches, or `REST`.

  Args:
    groups: in order.
    params: tree of arrays of any shape, which may carry logical names.

  Raises:
    ValueError: a pattern is the first to match for nothing, or nothing is left that learns.
  """
  seen: set[int] = set()
  paths: list[str] = []

  def label(path: Any, _: Any) -> str:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    paths.append(name)
    for number, group in enumerate(groups):
      if fnmatch.fnmatchcase(name, group.pattern):
        seen.add(number)
        return label_of(number)
    return REST

  is_leaf = lambda x: isinstance(x, nn.meta.AxisMetadata)  # noqa: E731
  found = jax.tree_util.tree_map_with_path(label, params, is_leaf=is_leaf)
  for number, group in enumerate(groups):
    if number not in seen:
      raise ValueError(
        f"config.optimizer.groups[{group.pattern!r}] matches no parameter that an earlier "
        f"pattern does not; parameters are such as {paths[0]}, {paths[-1]}."
      )
  frozen = {label_of(number) for number, group in enumerate(groups) if group.is_frozen}
  if paths and frozen.issuperset(jax.tree.leaves(found)):
    raise ValueError(
      "config.optimizer.groups freezes all parameters, so nothing would be trained; leave some "
      "out, or let them thaw."
    )
  return found
