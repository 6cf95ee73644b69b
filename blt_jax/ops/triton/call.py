"""How kernels for one NVIDIA GPU are called, and how two chains of them run at once."""

import contextlib
from collections.abc import Iterator, Sequence

import jax
from jax.experimental import pallas as pl

# Of the compiler: kernels that need nothing of each other may run at the same time.
COMPILER_OPTIONS = {"xla_gpu_command_buffer_scheduling_mode": "CONCURRENT"}

_recorded: list[jax.Array] | None = None


def call(kernel, out_shape, *arrays, grid=(1,), aliases=None, num_warps=4, interpret=False):
  """Runs a kernel whose programs read and write what they like of all arrays.

  Args:
    kernel: takes references to the arrays, then to the outputs.
    out_shape: of the outputs; a list.
    *arrays: inputs.
    grid: numbers of programs.
    aliases: which input has the memory of which output.
    num_warps: of a program.
    interpret: run as plain jax, for tests.

  Returns:
    A list of outputs.
  """
  params = None
  if not interpret:
    from jax.experimental.pallas import triton

    params = triton.CompilerParams(num_warps=num_warps, num_stages=1)
  anywhere = pl.BlockSpec(memory_space=pl.ANY)
  outputs = pl.pallas_call(
    kernel,
    grid=grid,
    in_specs=[anywhere] * len(arrays),
    out_specs=[anywhere] * len(out_shape),
    out_shape=out_shape,
    input_output_aliases=aliases or {},
    compiler_params=params,
    interpret=interpret,
  )(*arrays)
  if _recorded is not None:
    aliased = (aliases or {}).values()
    _recorded.extend(x for i, x in enumerate(outputs) if i not in aliased)
  return outputs


@contextlib.contextmanager
def recorded() -> Iterator[list[jax.Array]]:
  """Collects what kernels called inside give, for `after`."""
  global _recorded
  outputs: list[jax.Array] = []
  _recorded = outputs
  try:
    yield outputs
  finally:
    _recorded = None


def keep(x: jax.Array) -> jax.Array:
  """Has `recorded` collect an array that none of these kernels made; returns it."""
  if _recorded is not None and is_available():
    _recorded.append(x)
  return x


def after(x: jax.Array, others: Sequence[jax.Array]) -> jax.Array:
  """A small array, but not before others are there, nor their memory free before.

  Two chains of kernels run at once only where neither writes to memory that the other is
  done with; XLA knows nothing better than to use it again.
  """
  flat = x.reshape(-1)
  shape = jax.ShapeDtypeStruct(flat.shape, x.dtype)
  return call(_copy, [shape], flat, *others, grid=flat.shape, num_warps=1)[0].reshape(x.shape)


def _copy(x_ref, *refs):
  refs[-1][pl.program_id(0)] = x_ref[pl.program_id(0)]


def fits_head(head_dim: int) -> bool:
  """Whether a kernel can hold heads of this width: blocks are powers of two."""
  return head_dim & (head_dim - 1) == 0 and head_dim >= 32


def is_available() -> bool:
  """Whether the kernels can be used: on a single GPU, since they are not divided."""
  return jax.default_backend() == "gpu" and jax.device_count() == 1
