"""The gradient of root-mean-square normalisation on NVIDIA GPUs, in one pass over rows.

XLA goes through a row once for each of its sums and once for each gradient that it adds.
Here a program holds whole rows, reads all once, and adds up the gain's gradient of its
rows; the sum over programs is left to XLA.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from blt_jax.ops.triton import call

_ROWS = 16  # of a program
_ELEMENTS = 2048  # that a program holds at once
_WIDEST = 8192  # elements of a row at most


def fits(x: jax.Array) -> bool:
  """Whether the kernel takes rows [..., D]."""
  return x.shape[-1] <= _WIDEST


def rms_norm_gradient(
  x: jax.Array,
  scale: jax.Array,
  to_itself: jax.Array | None,
  gradients: Sequence[jax.Array],
  epsilon: float,
  interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
  """The gradients of `ops.norm.rms_norm`; float32 inside.

  Args:
    x: [..., D], what was normalised.
    scale: [D] gain.
    to_itself: [..., D], what else `x` gets; None for nothing.
    gradients: [..., D] each; the result gets their sum.
    epsilon: added to the mean square.
    interpret: runs on any backend, slowly.

  Returns:
    The gradient of `x` in its shape and dtype, and that of `scale`.
  """
  width = x.shape[-1]
  inputs = [x, *gradients] + ([] if to_itself is None else [to_itself])
  rows = [a.reshape(-1, width) for a in inputs]
  num_programs = pl.cdiv(len(rows[0]), _ROWS)
  anywhere = pl.BlockSpec(memory_space=pl.ANY)
  to_x, to_scale = pl.pallas_call(
    functools.partial(_kernel, count=len(gradients), epsilon=epsilon),
    grid=(num_programs,),
    in_specs=[anywhere] * (1 + len(rows)),
    out_specs=[anywhere] * 2,
    out_shape=[
      jax.ShapeDtypeStruct(rows[0].shape, x.dtype),
      jax.ShapeDtypeStruct((num_programs, width), jnp.float32),
    ],
    compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=1),
    interpret=interpret,
    name="rms_norm_gradient",
  )(scale, *rows)
  return to_x.reshape(x.shape), to_scale.sum(axis=0).astype(scale.dtype)


def _kernel(scale_ref: Any, x_ref: Any, *refs: Any, count: int, epsilon: float) -> None:
  *input_refs, to_x_ref, to_scale_ref = refs
  num_rows, width = x_ref.shape
  block, program = pl.next_power_of_2(width), pl.program_id(0)
  at_once = min(_ROWS, max(_ELEMENTS // block, 1))
  columns = call.first_columns(block, width)
  exists = jnp.arange(block) < width
  scale = plgpu.load(scale_ref.at[columns], mask=exists, other=0).astype(jnp.float32)

  def add(i, total):
    first = program * _ROWS + i * at_once
    mask = (first + jnp.arange(at_once) < num_rows)[:, None] & exists[None]
    here = pl.ds(first, at_once), columns

    def read(ref):
      return plgpu.load(ref.at[here], mask=mask, other=0).astype(jnp.float32)

    x, gradient = read(x_ref), sum(map(read, input_refs[1:count]), read(input_refs[0]))
    inverse_rms = jax.lax.rsqrt(jnp.sum(x * x, axis=1) / width + epsilon)[:, None]
    normed, scaled = x * inverse_rms, gradient * scale[None]
    mean = jnp.sum(normed * scaled, axis=1)[:, None] / width
    to_x = sum(map(read, input_refs[count:]), (scaled - normed * mean) * inverse_rms)
    plgpu.store(to_x_ref.at[here], to_x.astype(to_x_ref.dtype), mask=mask)
    return total + jnp.sum(normed * gradient, axis=0)

  total = jax.lax.fori_loop(0, _ROWS // at_once, add, jnp.zeros(block, jnp.float32))
  plgpu.store(to_scale_ref.at[program, columns], total, mask=exists)
