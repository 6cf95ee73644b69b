"""The gradient of root-mean-square normalisation on NVIDIA GPUs, in one pass over rows.

XLA goes through a row once for each of its sums, and adds up the gain's gradient on its
own. Here a program holds whole rows, reads each once, and adds up the gain's gradient of
its rows; the sum over programs is left to XLA.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

_ROWS = 16  # of a program
_ELEMENTS = 4096  # that a program holds at once
_WIDEST = 8192  # elements of a row at most


def fits(x: jax.Array) -> bool:
  """Whether the kernel takes rows [..., D]."""
  return x.shape[-1] <= _WIDEST


def rms_norm_gradient(
  x: jax.Array, scale: jax.Array, gradient: jax.Array, epsilon: float, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
  """The gradients of `ops.norm.rms_norm`; float32 inside.

  Args:
    x: [..., D], what was normalised.
    scale: [D] gain.
    gradient: [..., D], that of the result.
    epsilon: added to the mean square.
    interpret: runs on any backend, slowly.

  Returns:
    The gradient of `x` in its shape and dtype, and that of `scale`.
  """
  width = x.shape[-1]
  rows = x.reshape(-1, width)
  num_programs = pl.cdiv(len(rows), _ROWS)
  anywhere = pl.BlockSpec(memory_space=pl.ANY)
  to_x, to_scale = pl.pallas_call(
    functools.partial(_kernel, epsilon=epsilon),
    grid=(num_programs,),
    in_specs=[anywhere] * 3,
    out_specs=[anywhere] * 2,
    out_shape=[
      jax.ShapeDtypeStruct(rows.shape, x.dtype),
      jax.ShapeDtypeStruct((num_programs, width), jnp.float32),
    ],
    compiler_params=plgpu.CompilerParams(num_warps=8, num_stages=1),
    interpret=interpret,
    name="rms_norm_gradient",
  )(rows, scale, gradient.reshape(rows.shape))
  return to_x.reshape(x.shape), to_scale.sum(axis=0).astype(scale.dtype)


def _kernel(
  x_ref: Any, scale_ref: Any, gradient_ref: Any, to_x_ref: Any, to_scale_ref: Any, *, epsilon
) -> None:
  num_rows, width = x_ref.shape
  block = pl.next_power_of_2(width)
  at_once = min(_ROWS, max(_ELEMENTS // block, 1))
  columns = pl.ds(0, block)
  exists = jnp.arange(block) < width
  program = pl.program_id(0)
  scale = plgpu.load(scale_ref.at[columns], mask=exists, other=0).astype(jnp.float32)

  def add(i, total):
    first = program * _ROWS + i * at_once
    mask = (first + jnp.arange(at_once) < num_rows)[:, None] & exists[None]
    here = pl.ds(first, at_once), columns
    x, gradient = (
      plgpu.load(ref.at[here], mask=mask, other=0).astype(jnp.float32)
      for ref in (x_ref, gradient_ref)
    )
    inverse_rms = jax.lax.rsqrt(jnp.sum(x * x, axis=1) / width + epsilon)[:, None]
    normed, scaled = x * inverse_rms, gradient * scale[None]
    mean = jnp.sum(normed * scaled, axis=1)[:, None] / width
    to_x = (scaled - normed * mean) * inverse_rms
    plgpu.store(to_x_ref.at[here], to_x.astype(to_x_ref.dtype), mask=mask)
    return total + jnp.sum(normed * gradient, axis=0)

  total = jax.lax.fori_loop(0, _ROWS // at_once, add, jnp.zeros(block, jnp.float32))
  plgpu.store(to_scale_ref.at[program, columns], total, mask=exists)
