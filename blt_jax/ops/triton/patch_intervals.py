"""How kernels walk the bytes of a patch: ids are sorted, so a patch is an interval.

A program owns one patch (and some heads or columns): it alone writes the bytes of its
interval, so that sums over bytes need no atomics and two runs agree bit for bit.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

BLOCK = 8  # bytes that a program reads at once; patches have 4 to 8 of them on average
WARPS = 8  # of a program
_WIDTH = 1024  # elements of a byte that a program holds at most
_VECTORS = 4096  # elements of all vectors of a patch that a program holds at most


def interval_starts(ids: jax.Array, num_patches: int) -> jax.Array:
  """Where each patch begins: int32 [B, P + 1], the last entry the end of the last patch.

  Args:
    ids: int [B, S], non-decreasing along S; ids outside of 0 to P - 1 are in no patch.
    num_patches: P.
  """
  patches = jnp.arange(num_patches + 1, dtype=ids.dtype)

  def of_row(row: jax.Array) -> jax.Array:
    return jnp.searchsorted(row, patches, method="scan_unrolled")

  return jax.vmap(of_row)(ids).astype(jnp.int32)


def heads_at_once(num_heads: int, head_dim: int, vectors: int) -> int:
  """How many of G heads a program takes; a power of two that divides G.

  Args:
    num_heads: G.
    head_dim: H, see `fits_heads`.
    vectors: of each head, that a program holds for its patch.
  """
  most = min(_WIDTH, _VECTORS // vectors) // head_dim
  return largest_power_of_two(num_heads, max(most, 1))


def fits_heads(head_dim: int, vectors: int) -> bool:
  """Whether kernels take heads of H elements: blocks are powers of two."""
  is_power_of_two = head_dim & (head_dim - 1) == 0
  return is_power_of_two and 16 <= head_dim <= 256 and vectors <= 32


def width_at_once(dim: int) -> int:
  """How many of D columns a program takes; a power of two that divides D."""
  return largest_power_of_two(dim, _WIDTH)


def fits_width(dim: int) -> bool:
  """Whether kernels take D columns without falling apart into slivers."""
  return width_at_once(dim) >= 32


def largest_power_of_two(number: int, most: int) -> int:
  """The largest power of two that divides `number` and is no larger than `most`."""
  size = number & -number
  while size > most:
    size //= 2
  return size


def over_bytes(begin: Any, end: Any, body: Callable[..., Any], carry: Any) -> Any:
  """Runs `body(first, inside, carry)` for each block of the bytes from `begin` to `end`.

  `first` is where the block begins and `inside` [BLOCK] says which of its bytes count.
  """

  def step(index: Any, carry: Any) -> Any:
    first = begin + index * BLOCK
    return body(first, first + jnp.arange(BLOCK) < end, carry)

  return jax.lax.fori_loop(0, (end - begin + BLOCK - 1) // BLOCK, step, carry)


def load(ref: Any, inside: jax.Array) -> jax.Array:
  """Float32 values of a block of bytes [BLOCK, ...], zeros where not `inside`."""
  mask = _spread(inside, ref.shape)
  return plgpu.load(ref, mask=mask, other=0).astype(jnp.float32)


def store(ref: Any, values: jax.Array, inside: jax.Array) -> None:
  """Writes a block of bytes [BLOCK, ...] where `inside`."""
  plgpu.store(ref, values.astype(ref.dtype), mask=_spread(inside, ref.shape))


def _spread(inside: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """[BLOCK] -> [BLOCK, ...]."""
  return jnp.broadcast_to(inside.reshape(-1, *(1,) * (len(shape) - 1)), shape)


def call(
  kernel: Callable[..., None],
  grid: tuple[int, ...],
  inputs: tuple[jax.Array, ...],
  outputs: tuple[tuple[tuple[int, ...], Any], ...],
  interpret: bool,
  name: str,
  aliases: dict[int, int] | None = None,
) -> list[jax.Array]:
  """Runs a kernel whose programs read and write what they like of all arrays.

  Args:
    kernel: takes references to the inputs, then to the outputs.
    grid: numbers of programs.
    inputs: arrays [...].
    outputs: shape and dtype of each.
    interpret: run as plain jax, for tests.
    name: shown in profiles.
    aliases: which input has the memory of which output.
  """
  anywhere = pl.BlockSpec(memory_space=pl.ANY)
  return pl.pallas_call(
    kernel,
    grid=grid,
    in_specs=[anywhere] * len(inputs),
    out_specs=[anywhere] * len(outputs),
    out_shape=[jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in outputs],
    input_output_aliases=aliases or {},
    compiler_params=plgpu.CompilerParams(num_warps=WARPS, num_stages=1),
    interpret=interpret,
    name=name,
  )(*inputs)
