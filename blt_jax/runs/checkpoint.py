"""Checkpoints of a run with Orbax: what a run needs to go on, written in the background."""

import contextlib
import json
import math
import time
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers as policies

from blt_jax.parallel import distributed
from blt_jax.runs import model_settings, stored_state
from blt_jax.runs.stored_state import Json
from blt_jax.storage import causes, paths
from blt_jax.storage.folders import Folder
from blt_jax.storage.paths import Path
from blt_jax.training import digests
from blt_jax.training.state import TrainState

Step = int | Literal["best"] | None  # which checkpoint; None: the newest

_LEAST_SLICE = 2**20  # bytes; devices that hold the same array write parts no smaller


class Checkpoint(NamedTuple):
  """What was restored: the state, and what else was saved with it."""

  step: int
  state: TrainState
  extra: Json


class Checkpoints:
  """The checkpoints in a run's folder; all processes call its methods together.

  Kept are the newest, those at multiples of some number of steps, and the best by held-out
  bits per byte.
  """

  def __init__(
    self,
    workdir: Path,
    settings: ConfigDict | None = None,
    *,
    keep: int = 2,
    keep_every: int | None = None,
    best: int = 0,
  ):
    """Opens the folder and removes what a killed process left half-written.

    Args:
      workdir: the run's folder, which all processes see.
      settings: of the run; what decides its model is saved too, and checked.
      keep: newest checkpoints to keep.
      keep_every: steps; keep also those at its multiples.
      best: keep also so many with the lowest bits per byte.
    """
    kept: list[policies.PreservationPolicy] = [policies.LatestN(keep)]
    if keep_every:
      kept.append(policies.EveryNSteps(keep_every))
    if best:
      kept.append(_best(best))
    options = ocp.CheckpointManagerOptions(
      preservation_policy=policies.AnyPreservationPolicy(kept),
      best_fn=_bpb,  # without it, Orbax stores no metrics
      cleanup_tmp_directories=True,
    )
    ocp.type_handlers.register_type_handler(
      jax.Array,
      ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=_LEAST_SLICE),
      override=True,
    )
    self._workdir, self._folder, self._settings = workdir, folder_of(workdir), settings
    self._damaged = Folder(Folder(workdir).path_of("damaged"))
    self._is_damaged = False
    bad = [s for s in saved_steps(self._folder) if _saved_bpb(self._folder / str(s)) is None]
    for step in distributed.gather(bad)[0]:
      self._set_aside(step, "Its metrics cannot be read.")  # Orbax would not start
    self._manager = ocp.CheckpointManager(
      self._folder, options=options, item_names=("state", "extra")
    )

  def save(self, step: int, state: TrainState, extra: Json, bpb: float | None = None) -> None:
    """Starts to save; does nothing if this step is saved.

    Args:
      step: of the state.
      state: to save, copied before this returns, and a digest of each array with it.
      extra: also to save; that of process 0 counts.
      bpb: held-out bits per byte at this step, where known.

    Raises:
      OSError: this checkpoint or the one before cannot be written.
    """
    if step == self._manager.latest_step():
      return
    extra = beside(state, extra, self._settings)
    items = ocp.args.Composite(
      state=ocp.args.StandardSave(state), extra=ocp.args.JsonSave(extra)
    )
    with self._explaining():
      self._manager.save(
        step, args=items, metrics={"bpb": math.inf if bpb is None else bpb}, force=True
      )

  def check(self) -> None:
    """Raises OSError if what is being written failed."""
    with self._explaining():
      self._manager.check_for_errors()

  def wait(self) -> None:
    """Waits until everything is written.

    Raises:
      OSError: it cannot be.
    """
    with self._explaining():
      self._manager.wait_until_finished()

  def restore(self, abstract: TrainState) -> Checkpoint | None:
    """Restores the newest whole checkpoint; None if there is none at all.

    Those that are there and cannot be decoded, or whose arrays are not what was saved, are
    reported, and moved to `damaged/` in the run's folder.

    Args:
      abstract: shapes, dtypes and shardings of the state, for any mesh.

    Raises:
      ValueError: a checkpoint is of another model, or all of them are damaged.
      OSError: a part of one is missing, storage does not answer, or it may not be read.
    """
    for step in sorted(self._manager.all_steps(), reverse=True):
      checkpoint, damage = self._read_together(step, abstract)
      if not damage:
        return checkpoint
      self._set_aside(step, damage)
      self._manager.reload()
    if self._is_damaged:
      raise ValueError(
        f"None of the checkpoints of {self._workdir} can be read. They are in "
        f"{self._damaged}; start again in another config.workdir."
      )
    return None

  def close(self) -> None:
    """Waits until everything is written."""
    self.wait()
    self._manager.close()

  def _read_together(self, step: int, abstract: TrainState) -> tuple[Checkpoint | None, str]:
    """A checkpoint, or what is damaged in it; all processes agree."""
    folder, checkpoint, damage, missing = self._folder / str(step), None, "", ""
    try:
      checkpoint = stored_state.read(folder, lambda: self._read(step, abstract))
    except stored_state.FOREIGN:
      raise  # not the fault of the checkpoint
    except stored_state.NotThereError as error:
      missing = str(error)
    except Exception as error:  # each library below has exceptions of its own
      damage = f"{type(error).__name__}: {causes.brief(error)}"
    found = distributed.gather([missing, damage])
    for missing, _ in found:
      if missing:
        raise OSError(
          f"Checkpoint {step} of {self._workdir} cannot be read now: {missing}. It stays where "
          "it is. Start again when it is whole and can be read; or move it away, and the run "
          "goes on from the one before."
        )
    damage = next((text for _, text in found if text), "")
    if damage or checkpoint is None:
      return None, damage
    try:  # by all processes together
      stored_state.check_digests(f"Checkpoint {step}", checkpoint.state, checkpoint.extra)
    except ValueError as error:
      return None, f"{error}."
    state = stored_state.cast(checkpoint.state, abstract)
    extra = stored_state.without_digests(checkpoint.extra)
    extra.pop(model_settings.ENTRY, None)
    return Checkpoint(step, state, extra), ""

  def _read(self, step: int, abstract: TrainState) -> Checkpoint:
    """Without waiting for the other processes, which may fail to read it; dtypes as saved."""
    folder = self._folder / str(step)
    stored_state.check_parts(folder, "state", "extra")
    extra = stored_state.read_extra(folder)
    if self._settings is not None:
      model_settings.check(f"Checkpoint {step} of {self._workdir}", extra, self._settings)
    arrays = stored_state.stored_arrays(folder)
    self._check_shapes(step, arrays, abstract)
    wanted = stored_state.as_stored(abstract, arrays)
    alone = stored_state.alone()
    with ocp.Checkpointer(ocp.StandardCheckpointHandler(**alone), **alone) as reader:
      state = reader.restore(folder / "state", args=ocp.args.StandardRestore(wanted))
    return Checkpoint(step, state, extra)

  def _check_shapes(self, step: int, arrays: Json, abstract: TrainState) -> None:
    """Arrays of other names or shapes are no damage, but a mistake."""
    saved, wanted = _shapes(arrays), _shapes(digests.names_of(abstract))
    if saved and all(name.startswith("params/") for name in saved):
      raise stored_state.OtherModelError(
        f"{self._workdir} holds weights alone, converted or exported, and no state of a "
        f"training; train from them with config.init_from={self._workdir} and another "
        "config.workdir."
      )
    if saved != wanted:
      names = sorted(k for k in saved.keys() | wanted.keys() if saved.get(k) != wanted.get(k))
      raise stored_state.OtherModelError(
        f"Checkpoint {step} of {self._workdir} is one of another model or optimizer: "
        f"{len(names)} arrays differ, the first is {names[0]}, {saved.get(names[0])} there and "
        f"{wanted.get(names[0])} by this config. Use the config it was trained with, or "
        "another config.workdir."
      )

  def _set_aside(self, step: int, error: str) -> None:
    logging.error(
      "Checkpoint %d of %s is damaged, trying the one before. %s", step, self._workdir, error
    )
    self._is_damaged = True
    if distributed.is_lead():
      self._damaged.make()
      place = self._damaged.path_of(f"{step}-{time.time():.0f}")
      paths.move(self._folder / str(step), place)
    distributed.gather(None)  # nobody looks before it is done

  @contextlib.contextmanager
  def _explaining(self) -> Iterator[None]:
    try:
      yield
    except jax.errors.JaxRuntimeError:
      raise  # of a step or of a connection, not of writing
    except Exception as error:  # each library below has exceptions of its own
      advice = causes.advice(error)
      if isinstance(error, TimeoutError):  # so Orbax calls all that ends its waiting
        advice = (
          "Another process stopped first (see its log), or the disk or bucket is too slow"
        )
      raise OSError(
        f"A checkpoint cannot be written into {self._folder}: {error}. {advice}; those before "
        "it are whole, and the same command continues from them."
      ) from error


def find_step(workdir: Path, step: Step = None) -> int:
  """The step of a checkpoint of a run.

  Args:
    workdir: the run's folder.
    step: that of the checkpoint; "best" for the one with the lowest held-out bits per byte
      among those that are there, None for the newest.

  Raises:
    FileNotFoundError: there is no such checkpoint.
    ValueError: "best" is wanted, and none was evaluated when it was saved.
  """
  folder = folder_of(workdir)
  steps = sorted(saved_steps(folder))
  if not steps:
    raise FileNotFoundError(f"{workdir} holds no checkpoint; train it first.")
  if step is None:
    return steps[-1]
  listed = ", ".join(map(str, steps))
  if step != "best":
    if step not in steps:
      raise FileNotFoundError(f"{workdir} has no checkpoint of step {step}; it has {listed}.")
    return step
  saved = {s: _saved_bpb(folder / str(s)) for s in steps}
  bpb = {s: value for s, value in saved.items() if value is not None and math.isfinite(value)}
  if not bpb:
    raise ValueError(
      f"No checkpoint of {workdir} was evaluated when it was saved, so none is known to be the "
      f"best; give the step of one: {listed}."
    )
  return min(bpb, key=bpb.__getitem__)


def newest_step(workdir: Path) -> int | None:
  """The step of a run's newest checkpoint; None if there is none."""
  return max(saved_steps(folder_of(workdir)), default=None)


def warn_if_old(workdir: Path, step: int) -> None:
  """Says what training does where an entropy model was read at an earlier step than it will."""
  newest = find_step(workdir)
  if step != newest:
    logging.warning(
      "Training reads step %d of %s, not %d; to train with this one, give it a folder of its "
      "own: python -m blt_jax.export --run=%s --step=%d --output=FOLDER",
      newest, workdir, step, workdir, step,
    )  # fmt: skip


def beside(state: Any, extra: Json, settings: ConfigDict | None) -> Json:
  """What is saved beside arrays: `extra`, what decides the model, digests."""
  if settings is not None:
    extra = extra | {model_settings.ENTRY: model_settings.of(settings)}
  return stored_state.with_digests(extra, state)


def saved_steps(folder: epath.Path) -> list[int]:
  """Steps of whole checkpoints."""
  if not folder.exists():
    return []
  return [found.step for found in ocp.path.step.standard_name_format().find_all(folder)]


def _saved_bpb(folder: epath.Path) -> float | None:
  """Held-out bits per byte of a checkpoint; infinite if not measured, None if damaged."""
  metrics = folder / "metrics" / "metrics"  # as Orbax names them
  try:
    return float(json.loads(metrics.read_text())["bpb"]) if metrics.exists() else math.inf
  except (ValueError, KeyError, TypeError):
    return None


def _best(count: int) -> policies.BestN:
  return policies.BestN(
    get_metric_fn=_bpb, reverse=True, n=count, keep_checkpoints_without_metrics=False
  )


def _bpb(metrics: dict[str, float]) -> float:
  return metrics["bpb"]


def _shapes(arrays: Json) -> dict[str, tuple[int, ...]]:
  """Path -> shape of each array, saved or not."""
  return {name: tuple(array.shape) for name, array in arrays.items()}


def folder_of(workdir: Path) -> epath.Path:
  """As Orbax wants it, which stores arrays with TensorStore.

  Raises:
    ValueError: TensorStore does not write there, or Orbax would take the name for a pattern.
  """
  folder = Folder(workdir)
  if set("*?[]") & set(folder.path_of("")):
    raise ValueError(
      f"{folder.path_of('').rstrip('/')} can hold no checkpoints: one of * ? [ ] is in its "
      "name, which stand for other names; rename it, or choose another config.workdir."
    )
  if folder.is_remote and not folder.path.startswith(("gs://", "s3://")):
    raise ValueError(f"{workdir} can hold no checkpoints; give a folder, or gs:// or s3://.")
  return epath.Path(folder.path_of("checkpoints"))
