"""What is in a checkpoint's folder: reading it, and what an error of reading says about it."""

import hashlib
import json
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from absl import logging

from blt_jax.storage import causes, files
from blt_jax.storage.folders import Folder
from blt_jax.storage.paths import Path
from blt_jax.training import digests

Json = dict[str, Any]
T = TypeVar("T")

DIGESTS = "digests"  # the entry of `extra` that holds those of the arrays
_WAITS = (1.0, 5.0, 15.0)  # seconds before reading again


class OtherModelError(ValueError):
  """A checkpoint is of another model or optimizer than the one at hand."""


# Errors that are not the fault of what is stored.
FOREIGN = (OtherModelError, PermissionError, MemoryError, jax.errors.JaxRuntimeError)


class NotThereError(OSError):
  """A part of a checkpoint is missing, or storage does not give it: no sign of damage."""


def alone() -> Json:
  """Options of Orbax for what a process does without the others."""
  index = jax.process_index()
  options = ocp.options.MultiprocessingOptions(
    primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process_{index}"
  )
  return {"multiprocessing_options": options}


def read(folder: Path, reading: Callable[[], T]) -> T:
  """Reads something of a checkpoint; again where storage may have had a bad moment.

  Args:
    folder: of the checkpoint.
    reading: gives what is wanted.

  Raises:
    NotThereError: something is missing, or storage does not answer.
    Exception: what `reading` raised, where all files are there and can be read: damage.
  """
  for tried, wait in enumerate((*_WAITS, None)):
    try:
      return reading()
    except (*FOREIGN, NotThereError):
      raise
    except Exception as error:  # each library below has exceptions of its own
      is_passing = causes.is_passing(error)
      if wait is not None and (is_passing or not tried):
        logging.info("%s cannot be read yet: %s", folder, causes.brief(error))
        time.sleep(wait)
        continue
      if is_passing:
        raise NotThereError(f"storage does not answer: {causes.brief(error)}") from error
      _check_files(folder, error)
      raise
  raise AssertionError  # the last turn returns or raises


def _check_files(folder: Path, error: Exception) -> None:
  """Raises NotThereError where not all files of a checkpoint are there and can be read."""
  text = str(error)
  if isinstance(error, FileNotFoundError) or "NOT_FOUND" in text:
    raise NotThereError(f"a part is missing: {causes.brief(error)}") from error
  try:
    for path in files.list_files(str(folder)):
      files.read_start(path, 1)
  except OSError as failure:
    raise NotThereError(f"its files cannot be read: {failure}") from failure


def check_parts(folder: Path, *parts: str) -> None:
  """Raises NotThereError if the folder of a checkpoint lacks one of these folders."""
  found = Folder(folder).sizes()
  for part in parts:
    if part not in found:
      raise NotThereError(f"it has no {part!r}")


def read_extra(folder: Path) -> Json:
  """What was saved beside the state; empty in weights that an earlier version exported.

  Raises:
    ValueError: it is no JSON object.
  """
  if "extra" not in Folder(folder).sizes():
    return {}
  return files.read_json(Folder(folder).path_of("extra/metadata"))  # as Orbax names it


def stored_arrays(folder: Any) -> Json:
  """Path -> metadata, with shape and dtype, of each array of a checkpoint (an epath)."""
  return digests.names_of(ocp.PyTreeCheckpointHandler().metadata(folder / "state").tree)


def as_stored(abstract: Any, arrays: Json, prefix: str = "") -> Any:
  """An abstract tree with the dtypes of the arrays of a checkpoint.

  Args:
    abstract: tree of `jax.ShapeDtypeStruct`.
    arrays: as `stored_arrays` gives them.
    prefix: what stands before the paths of the tree there.
  """
  names = iter(digests.names_of(abstract))
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape, arrays[prefix + next(names)].dtype, sharding=x.sharding
    ),
    abstract,
  )


def cast(tree: Any, abstract: Any) -> Any:
  """The tree in the dtypes of `abstract`."""
  pairs = jax.tree.map(lambda x, a: x.dtype == a.dtype, tree, abstract)
  if all(jax.tree.leaves(pairs)):
    return tree
  return jax.jit(lambda t: jax.tree.map(lambda x, a: x.astype(a.dtype), t, abstract))(tree)


def with_digests(extra: Json, tree: Any) -> Json:
  """What is saved beside arrays: `extra`, a digest of each array, and one of `extra`."""
  return extra | {DIGESTS: digests.digests_of(tree) | {"extra": _digest(extra)}}


def without_digests(extra: Json) -> Json:
  """What `with_digests` was given."""
  return {name: value for name, value in extra.items() if name != DIGESTS}


def check_digests(name: str, tree: Any, extra: Json) -> None:
  """Checks that what was read is what was saved; without digests it passes with a note.

  Args:
    name: of the checkpoint, for messages.
    tree: its arrays, with their paths there.
    extra: of the checkpoint, as `with_digests` made it.

  Raises:
    ValueError: it is not.
  """
  saved = extra.get(DIGESTS)
  if saved is None:
    logging.info("%s has no digests of its arrays, so nothing tells if they are whole.", name)
    return
  if not isinstance(saved, dict) or saved.get("extra") != _digest(without_digests(extra)):
    raise ValueError("its extra/metadata is not what was saved")
  wrong = digests.differing(tree, saved)
  if wrong:
    raise ValueError(
      f"{len(wrong)} of its arrays are not what was saved (bits changed since), the first is "
      f"{wrong[0]}"
    )


def _digest(extra: Json) -> str:
  text = json.dumps(json.loads(json.dumps(extra)), sort_keys=True)  # as it is when read
  return hashlib.sha256(text.encode()).hexdigest()[:16]
