"""Checkpoints of a run with Orbax: state and data iterator together."""

import pathlib
from typing import Any

import grain
import orbax.checkpoint as ocp

from blt_jax.train_state import TrainState


class Checkpoints:
  """The checkpoints in a run's folder; writing goes on in the background."""

  def __init__(self, workdir: pathlib.Path, keep: int = 2):
    options = ocp.CheckpointManagerOptions(max_to_keep=keep)
    self._manager = ocp.CheckpointManager(_folder(workdir), options=options)

  @property
  def latest_step(self) -> int | None:
    """Step of the newest complete checkpoint."""
    return self._manager.latest_step()

  def save(self, state: TrainState, batches: grain.DatasetIterator) -> None:
    """Saves the state and where the data is; does nothing if this step is saved."""
    step = int(state.step)
    if step == self.latest_step:
      return
    items = ocp.args.Composite(
      state=ocp.args.StandardSave(state), data=grain.checkpoint.CheckpointSave(batches)
    )
    self._manager.save(step, args=items)

  def restore(self, abstract: TrainState, batches: grain.DatasetIterator) -> TrainState:
    """Restores the newest checkpoint; sets `batches` to continue with the next batch."""
    items = ocp.args.Composite(
      state=ocp.args.StandardRestore(abstract),
      data=grain.checkpoint.CheckpointRestore(batches),
    )
    return self._manager.restore(self.latest_step, args=items)["state"]

  def close(self) -> None:
    """Waits until everything is written."""
    self._manager.wait_until_finished()
    self._manager.close()


def find_step(workdir: pathlib.Path) -> int:
  """The step of the newest checkpoint of a run.

  Raises:
    FileNotFoundError: there is no checkpoint.
  """
  folder = _folder(workdir)
  step = None
  if folder.exists():
    with ocp.CheckpointManager(folder) as manager:
      step = manager.latest_step()
  if step is None:
    raise FileNotFoundError(f"{workdir} holds no checkpoint; train it first.")
  return step


def load_params(workdir: pathlib.Path, abstract: Any) -> Any:
  """The parameters of the newest checkpoint of a run.

  Args:
    workdir: the run's folder.
    abstract: tree of `jax.ShapeDtypeStruct`, the parameters to restore.

  Raises:
    FileNotFoundError: there is no checkpoint.
  """
  folder, step = _folder(workdir), find_step(workdir)
  wanted = {"params": abstract}
  restore_args = ocp.checkpoint_utils.construct_restore_args(wanted)
  with ocp.PyTreeCheckpointer() as checkpointer:
    restored = checkpointer.restore(
      folder / str(step) / "state",
      args=ocp.args.PyTreeRestore(wanted, restore_args=restore_args, partial_restore=True),
    )
  return restored["params"]


def _folder(workdir: pathlib.Path) -> pathlib.Path:
  return (workdir / "checkpoints").absolute()
