"""How kernels walk the bytes of a patch: ids are sorted, so a patch is an interval.

A program owns one patch (and some heads or columns): it alone writes the bytes of its
interval, so that sums over bytes need no atomics and two runs agree bit for bit.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from blt_jax.ops.triton.call import first_columns

BLOCK = 8  # bytes that a program reads at once; patches have 4 to 8 of them on average
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
    head_dim: H.
    vectors: of each head, that a program holds for its patch.
  """
  most = min(_WIDTH, _VECTORS // vectors) // padded(head_dim)
  return largest_power_of_two(num_heads, max(most, 1))


def fits_heads(head_dim: int, vectors: int) -> bool:
  """Whether kernels hold so many vectors of H elements."""
  return 16 <= head_dim <= 256 and vectors <= 32


def head_columns(head_dim: int) -> tuple[Any, jax.Array | None]:
  """The elements of a head as kernels take them, and which of them exist.

  Blocks are powers of two: heads of 76 are read as 128, of which the rest is masked.
  """
  size = padded(head_dim)
  exists = None if size == head_dim else jnp.arange(size) < head_dim
  return first_columns(size, head_dim), exists


def padded(head_dim: int) -> int:
  """The power of two from H on."""
  return 1 << (head_dim - 1).bit_length()


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


def load(
  ref: Any, inside: jax.Array | None = None, columns: jax.Array | None = None
) -> jax.Array:
  """Float32 values of a block, zeros where it is masked.

  Args:
    ref: [..., columns], of bytes [BLOCK, ..., columns].
    inside: bool [BLOCK], which bytes count; None for all, or where there are none.
    columns: bool, which of the last dimension exist; None for all.
  """
  mask = _mask(ref.shape, inside, columns)
  other = None if mask is None else 0
  return plgpu.load(ref, mask=mask, other=other).astype(jnp.float32)


def store(
  ref: Any,
  values: jax.Array,
  inside: jax.Array | None = None,
  columns: jax.Array | None = None,
) -> None:
  """Writes a block where it is not masked; see `load`."""
  mask = _mask(ref.shape, inside, columns)
  plgpu.store(ref, values.astype(ref.dtype), mask=mask)


def _mask(
  shape: tuple[int, ...], inside: jax.Array | None, columns: jax.Array | None
) -> jax.Array | None:
  masks = []
  if inside is not None:
    masks.append(inside.reshape(-1, *(1,) * (len(shape) - 1)))
  if columns is not None:
    masks.append(columns.reshape(*(1,) * (len(shape) - 1), -1))
  spread = [jnp.broadcast_to(mask, shape) for mask in masks]
  return functools.reduce(jnp.logical_and, spread) if spread else None


def call(
  kernel: Callable[..., None],
  grid: tuple[int, ...],
  inputs: tuple[jax.Array, ...],
  outputs: tuple[tuple[tuple[int, ...], Any], ...],
  interpret: bool,
  name: str,
  width: int,
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
    width: elements of a byte that a program holds.
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
    compiler_params=plgpu.CompilerParams(
      num_warps=min(max(BLOCK * width // 1024, 1), 8), num_stages=1
    ),
    interpret=interpret,
    name=name,
  )(*inputs)
