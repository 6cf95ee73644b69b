"""Parameters alone: written for who reads a run, and read without its optimizer's state."""

from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from blt_jax.runs import model_settings, stored_state
from blt_jax.runs.checkpoint import Step, beside, find_step, folder_of, saved_steps
from blt_jax.runs.stored_state import Json
from blt_jax.storage import causes
from blt_jax.storage.paths import Path
from blt_jax.training import digests


def load(
  workdir: Path,
  abstract: Any,
  step: Step = None,
  settings: ConfigDict | None = None,
  as_stored: bool = False,
  part: str = "params",
) -> Any:
  """The parameters of a checkpoint of a run, for this process alone.

  Args:
    workdir: the run's folder.
    abstract: tree of `jax.ShapeDtypeStruct`, the parameters to restore, maybe not all.
    step: which checkpoint, as for `find_step`.
    settings: of the run, to be those that the checkpoint was trained with.
    as_stored: give NumPy arrays, in the dtypes that they have there.
    part: field of `TrainState`, for another one than the parameters.

  Raises:
    FileNotFoundError: there is no such checkpoint.
    ValueError: as `find_step`, it is of other settings, or it cannot be read.
  """
  step = find_step(workdir, step)
  folder, name = folder_of(workdir) / str(step), f"Checkpoint {step} of {workdir}"

  def reading() -> tuple[Any, Json]:
    stored_state.check_parts(folder, "state")
    extra = stored_state.read_extra(folder)
    if settings is not None:
      model_settings.check(name, extra, settings)
    return _read(folder / "state", stored_state.stored_arrays(folder), abstract, part), extra

  try:
    stored, extra = stored_state.read(folder, reading)
    stored = jax.tree.map(np.asarray, stored) if as_stored else stored
    stored_state.check_digests(name, {part: stored}, extra)
  except stored_state.FOREIGN:
    raise  # not the fault of the checkpoint
  except stored_state.NotThereError as error:
    raise OSError(f"{name} cannot be read now: {error}.") from error
  except Exception as error:  # each library below has exceptions of its own
    others = [s for s in sorted(saved_steps(folder.parent)) if s != step]
    raise ValueError(
      f"{name} cannot be read: {causes.brief(error)}. If it is damaged, choose the step of "
      f"another one; there are {others}."
    ) from error
  return stored if as_stored else stored_state.cast(stored, abstract)


def scalars_of(workdir: Path, step: int) -> dict[str, float]:
  """The scalars `TrainState.extra` of a checkpoint by name; empty where there are none.

  Raises: as `load`.
  """
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  abstract = {
    name: jax.ShapeDtypeStruct(found.shape, found.dtype, sharding=device)
    for name, found in shapes_of(workdir, step, "extra").items()
  }
  if not abstract:
    return {}
  stored = load(workdir, abstract, step, as_stored=True, part="extra")
  return {name: float(value) for name, value in stored.items()}


def shapes_of(
  workdir: Path, step: int, part: str = "params"
) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes and dtypes of the parameters of a checkpoint, or of another part, by path."""
  arrays = stored_state.stored_arrays(folder_of(workdir) / str(step))
  start = f"{part}/"
  return {
    name.removeprefix(start): jax.ShapeDtypeStruct(array.shape, array.dtype)
    for name, array in arrays.items()
    if name.startswith(start)
  }


def digests_of(workdir: Path, step: int | None = None) -> Json:
  """Path -> digest of each parameter in a checkpoint of a run; empty in those of before.

  Args:
    workdir: the run's folder.
    step: of the checkpoint; None for the newest.

  Raises:
    FileNotFoundError: there is no checkpoint.
  """
  extra = stored_state.read_extra(folder_of(workdir) / str(find_step(workdir, step)))
  saved = extra.get(stored_state.DIGESTS, {})
  return {name: value for name, value in saved.items() if name.startswith("params/")}


def _read(state: Path, arrays: Json, abstract: Any, part: str) -> Any:
  """A part of the arrays of a checkpoint's state, their dtypes as saved."""
  lacking = [n for n in digests.names_of({part: abstract}) if n not in arrays]
  if lacking:
    raise ValueError(f"it has no array {lacking[0]}")
  wanted = {part: stored_state.as_stored(abstract, arrays, f"{part}/")}
  restore_args = ocp.checkpoint_utils.construct_restore_args(wanted)
  args = ocp.args.PyTreeRestore(wanted, restore_args=restore_args, partial_restore=True)
  alone = stored_state.alone()
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**alone), **alone) as reader:
    return reader.restore(state, args=args)[part]


def save(workdir: Path, step: int, params: Any, settings: ConfigDict | None = None) -> None:
  """Writes parameters, and the settings that decide their model, for `load`.

  Few arrays are worked on at a time, and those of NumPy are not copied first.

  Args:
    workdir: the run's folder.
    step: of the checkpoint.
    params: tree of arrays.
    settings: of the run.
  """
  state = {"params": params}
  extra = beside(state, {}, settings)
  state = jax.tree.map(_for_orbax, state)
  # Its limit must be above the largest array.
  room = 1 + max(x.nbytes for x in jax.tree.leaves(state)) // 10**9
  items = ocp.args.Composite(state=ocp.args.PyTreeSave(state), extra=ocp.args.JsonSave(extra))
  handlers = {
    "state": ocp.PyTreeCheckpointHandler(save_concurrent_gb=room),
    "extra": ocp.JsonCheckpointHandler(),
  }
  with ocp.CheckpointManager(folder_of(workdir), item_handlers=handlers) as manager:
    manager.save(step, args=items)


def _for_orbax(array: Any) -> Any:
  """Of NumPy's arrays Orbax copies all at once; JAX takes those of whole pages as they are."""
  try:
    host = jax.local_devices(backend="cpu")[0]
  except RuntimeError:  # JAX_PLATFORMS leaves it out
    return array
  return jax.device_put(array, host) if isinstance(array, np.ndarray) else array
