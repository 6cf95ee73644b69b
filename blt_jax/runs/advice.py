"""What to change when a step does not fit into a chip's memory."""

from collections.abc import Iterator

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from blt_jax.parallel import sharding


class OutOfMemoryError(Exception):
  """A step needs more memory than a chip has; says what to change."""


def explain(error: jax.errors.JaxRuntimeError, config: ConfigDict, mesh: Mesh) -> Exception:
  """The compiler's error as one that says what to change; other errors as they are."""
  if "RESOURCE_EXHAUSTED" not in str(error):
    return error
  return too_large(str(error).splitlines()[0], config, mesh)


def too_large(what: str, config: ConfigDict, mesh: Mesh) -> OutOfMemoryError:
  """The error of a step that does not fit.

  Args:
    what: is too large.
    config: the whole settings.
    mesh: of the step.
  """
  levers = "\n".join(f"  - {lever}" for lever in _levers(config, mesh))
  return OutOfMemoryError(f"The step does not fit: {what}\nWhat helps:\n{levers}")


def _levers(config: ConfigDict, mesh: Mesh) -> Iterator[str]:
  accumulate = config.optimizer.accumulate
  rows = config.data.batch_size // sharding.num_row_shards(mesh)
  if rows > accumulate:
    yield (
      f"config.optimizer.accumulate={accumulate * 2}: {rows} rows per chip now pass in "
      f"{accumulate} parts; activations shrink with the part"
    )
  stacks = {k: v for k, v in config.model.items() if isinstance(v, ConfigDict) and "remat" in v}
  for name, stack in stacks.items():
    if stack.remat != "full":
      yield f"config.model.{name}.remat=full (now {stack.remat}): one array kept per layer"
  if mesh.shape["data"] > 1:
    yield (
      f"config.mesh.fsdp above {mesh.shape['fsdp']}: 'data' x {mesh.shape['data']} keeps as "
      "many copies of the parameters, gradients and optimizer state"
    )
  yield f"config.mesh.tensor above {mesh.shape['tensor']}: chips share each row's activations"
  yield f"config.data.seq_len below {config.data.seq_len}, or a larger slice"
