"""How kernels for one NVIDIA GPU are called, and how two chains of them run at once."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.extend import core
from jax.interpreters import mlir

# Of the compiler: kernels that need nothing of each other may run at the same time.
COMPILER_OPTIONS = {"xla_gpu_command_buffer_scheduling_mode": "CONCURRENT"}


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
  aliased = (aliases or {}).values()
  return [x if i in aliased else retain(x) for i, x in enumerate(outputs)]


def start_loads(interpret: bool) -> None:
  """Within a kernel, has all loads above under way before anything below waits for one.

  The assembler moves loads down to where they are needed, so that one wait for memory
  follows the other; it moves none across a barrier, which itself waits for no load.
  """
  if not interpret:
    from jax.experimental.pallas import triton

    triton.debug_barrier()


def retain(x: jax.Array) -> jax.Array:
  """Marks an array [...] that none of these kernels made as one that `overlap` retains."""
  return _retain.bind(x)


_retain = core.Primitive("retain")  # the identity, to be found in a traced program
_retain.def_impl(lambda x: x)
_retain.def_abstract_eval(lambda x: x)
mlir.register_lowering(_retain, lambda _, x: [x])


def overlap(
  first: Callable[[], tuple[jax.Array, Any]], second: Callable[[], tuple[jax.Array, Any]]
) -> tuple[tuple[jax.Array, Any], tuple[jax.Array, Any]]:
  """Runs two chains of kernels at once.

  They run at once only where neither writes to memory that the other is done with, and
  XLA knows nothing better than to use it again. So what `first` makes on its way, outputs
  of `call` and arrays marked by `retain`, stays until both chains are done.

  Args:
    first: gives a small array [...], and what else it likes.
    second: gives the array that it makes last, and what else it likes.

  Returns:
    What `first` gives, the small array as one that is there when both are done; and what
    `second` gives.
  """
  (small, rest), retained = _run_retaining(first)
  last, others = second()
  return (_after(small, [*retained, last]), rest), (last, others)


def _run_retaining(function: Callable[[], Any]) -> tuple[Any, list[jax.Array]]:
  """What a function gives, and all arrays on the way there that `retain` marked."""
  program, shapes = jax.make_jaxpr(function, return_shape=True)()
  results = program.jaxpr.outvars
  marked = [eqn.invars[0] for eqn in program.jaxpr.eqns if eqn.primitive is _retain]
  longer = program.jaxpr.replace(outvars=[*results, *marked])
  arrays = core.jaxpr_as_fun(core.ClosedJaxpr(longer, program.consts))()
  given = jax.tree.unflatten(jax.tree.structure(shapes), arrays[: len(results)])
  return given, arrays[len(results) :]


def _after(x: jax.Array, others: Sequence[jax.Array]) -> jax.Array:
  """A copy of a small array, made when others are there and before their memory is free."""
  flat = x.reshape(-1)
  shape = jax.ShapeDtypeStruct(flat.shape, x.dtype)
  return call(_copy, [shape], flat, *others, grid=flat.shape, num_warps=1)[0].reshape(x.shape)


def _copy(x_ref, *refs):
  refs[-1][pl.program_id(0)] = x_ref[pl.program_id(0)]


def first_columns(block: int, width: int) -> Any:
  """A slice of `block` columns of `width`, of which those beyond the last are to be masked.

  JAX refuses slices that it sees reach beyond their array, so it is not to know the start.
  """
  return pl.ds(0 if block <= width else pl.program_id(0) * 0, block)


def fits_head(head_dim: int) -> bool:
  """Whether a kernel can hold heads of this width: blocks are powers of two."""
  return head_dim & (head_dim - 1) == 0 and head_dim >= 32
