"""Two looks at whether a model sees the future, which share nothing: bytes, and gradients."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from blt_jax import tokenizer


def text(seed: int, size: int, rows: int | None = None) -> np.ndarray:
  """Ids int32 [S, S] of a document in each of S rows, the first `rows` of them different."""
  ids = np.random.default_rng(seed).integers(4, 260, (rows or size, size)).astype(np.int32)
  ids[:, 0] = tokenizer.BOS_ID
  return np.resize(ids, (size, size))


def other_ids(size: int) -> np.ndarray:
  """Ids int32 [S] that are all different: each has a row of its table for itself."""
  return np.random.default_rng(3).permutation(np.arange(4, 260))[:size].astype(np.int32)


def changes(run: Callable[[np.ndarray], tuple[Any, Any]], size: int) -> float:
  """By how much logits change, up to a position, where all bytes after it are replaced.

  The new bytes have to make other patches, at all resolutions.

  Args:
    run: gives the logits [S, S, V] of ids [S, S], and lengths [S, P] or [R, S, P] of patches.
    size: S.
  """
  at = np.arange(size)
  is_later = at[:, None] < at  # [row, position]: after the row's own position
  ids = text(1, size, rows=1)
  found, made = map(np.asarray, run(np.where(is_later, text(2, size), ids)))
  want, own = map(np.asarray, run(ids))
  assert (made != own).any(axis=(-2, -1)).all()
  assert 4 < (own.reshape(-1, *own.shape[-2:])[0, 0] > 0).sum() < size - 4
  difference = abs(found - want).max(axis=-1)
  assert difference[is_later].max() > 1e-2
  return difference[~is_later].max()


def gradients_of(model: Any, params: Any, ids: np.ndarray, slots: np.ndarray) -> Any:
  """What gives of a position the gradients of its logits with respect to parameters.

  Args:
    model: makes its patches itself, in P slots.
    params: of the model.
    ids: int [S], a row.
    slots: int [1, P].
  """

  @jax.jit
  @jax.grad
  def find(params, position):
    logits, _ = model.apply({"params": params}, ids[None], slots, method="forward")
    return (logits[0, position] * jnp.cos(jnp.arange(260))).sum()

  return functools.partial(find, params)


def check_gradients(find: Callable[[int], Iterable[Any]], size: int) -> None:
  """Gradients of logits at a position reach all bytes up to it, and none after.

  Args:
    find: gives of a position the gradients with respect to what stands for S bytes, [S, D]
      each.
    size: S.
  """
  for position in (0, 5, 12, size - 2):
    for gradient in find(position):
      found = abs(np.asarray(gradient)).sum(axis=-1)
      assert (found[position + 1 :] == 0).all(), position
      assert (found[: position + 1] > 0).all(), position
