"""Sums over the bytes of each patch, one program per patch: the transpose of a gather."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from blt_jax.ops.triton import patch_intervals
from blt_jax.ops.triton.patch_intervals import load, over_bytes


def fits(values: jax.Array) -> bool:
  """Whether `reduce_sum` takes values [B, S, D]."""
  return values.ndim == 3 and patch_intervals.fits_width(values.shape[2])


def reduce_sum(
  values: jax.Array, ids: jax.Array, num_patches: int, interpret: bool = False
) -> jax.Array:
  """Sums in float32 over the bytes of each patch; has no gradient of its own.

  Args:
    values: [B, S, D].
    ids: int [B, S] patch of each byte, non-decreasing along S; bytes of other patches than
      0 to P - 1 count nowhere.
    num_patches: P.
    interpret: runs on any backend, slowly.

  Returns:
    [B, P, D] in the dtype of `values`.
  """
  batch, _, dim = values.shape
  starts = patch_intervals.interval_starts(ids, num_patches)
  width = patch_intervals.width_at_once(dim)
  (sums,) = patch_intervals.call(
    functools.partial(_patch_sum_kernel, width=width),
    (num_patches, dim // width, batch),
    (values, starts),
    (((batch, num_patches, dim), values.dtype),),
    interpret,
    "patch_sum",
    width,
  )
  return sums


def _patch_sum_kernel(value_ref: Any, start_ref: Any, sum_ref: Any, *, width: int) -> None:
  patch, row = pl.program_id(0), pl.program_id(2)
  columns = pl.ds(pl.program_id(1) * width, width)

  def add(first: Any, inside: jax.Array, total: Any) -> Any:
    here = value_ref.at[row, pl.ds(first, patch_intervals.BLOCK), columns]
    return total + jnp.sum(load(here, inside), axis=0)

  begin, end = start_ref[row, patch], start_ref[row, patch + 1]
  total = over_bytes(begin, end, add, jnp.zeros(width, jnp.float32))
  sum_ref[row, patch, columns] = total.astype(sum_ref.dtype)
