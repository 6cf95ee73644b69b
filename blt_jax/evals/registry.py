"""All tasks by their names, those that a user wrote as a file included."""

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any

from blt_jax.evals import (
  choices,
  code,
  cute,
  g2p,
  gsm8k,
  language,
  noised,
  own,
  rows,
  translation,
)
from blt_jax.evals.task import Row, Task
from blt_jax.storage import paths
from blt_jax.storage.folders import Folder

_PLAIN: tuple[Task, ...] = (
  *choices.TASKS, *language.TASKS, *gsm8k.TASKS, *g2p.TASKS, *cute.TASKS, *code.TASKS,
  *translation.TASKS,
)  # fmt: skip
_SPOILED = [noised.of(task) for task in _PLAIN]
_NOISE = "_noise"
TASKS: dict[str, Task] = {task.name: task for task in (*_PLAIN, *_SPOILED) if task}


def find(
  name: str, seed: int = 0, run_code: bool = False, rows: Sequence[Row] | None = None
) -> Task:
  """The task of a name.

  Args:
    name: of `TASKS`, or of a task that a user wrote.
    seed: of its noises.
    run_code: whether programs that a model wrote may run.
    rows: of its file, which say what kind of task a user's is.

  Raises:
    ValueError: there is none.
  """
  task = TASKS.get(name)
  if task is None:
    task = _own(name, rows[0] if rows else {})
  changes: dict[str, Any] = {"seed": seed, "run_code": run_code}
  fields = {field.name for field in dataclasses.fields(task)}
  return dataclasses.replace(task, **{k: v for k, v in changes.items() if k in fields})


def find_all(
  names: Sequence[str], data: str, seed: int = 0, run_code: bool = False
) -> list[Task]:
  """The tasks of several names, ready to be scored; see `find`.

  Args:
    names: of tasks, each once.
    data: folder of their files.
    seed: of their noises.
    run_code: whether programs that a model wrote may run.

  Raises:
    FileNotFoundError: the data is no folder.
    ImportError: a library that a task needs is missing.
    ValueError: there is no such one, or it runs programs and may not.
  """
  _check_folder(data)
  twice = [name for name in names if names.count(name) > 1]
  if twice:
    raise ValueError(f"The task {twice[0]!r} is named twice; name each once.")
  found = [find(name, seed, run_code, _rows_of(name, data)) for name in names]
  for task in found:
    task.check_ready()
  return found


def _check_folder(data: str) -> None:
  filesystem, root = paths.find_filesystem(data)
  if not filesystem.isdir(root):
    raise FileNotFoundError(
      f"{data} is no folder; --data of tasks is the folder with their files, NAME.jsonl, or "
      "`sample`."
    )


def _rows_of(name: str, data: str) -> list[rows.PlacedRow] | None:
  """The rows of a task that a user wrote; None for one of `TASKS`."""
  if name in TASKS:
    return None
  file, home = _file_of(name), Folder(data)
  if name.endswith(".jsonl"):
    raise ValueError(f"Name the task {name!r} without .jsonl, as its file {name} would be.")
  if not file or not home.exists(f"{file}.jsonl"):
    files = [n.removesuffix(".jsonl") for n in home.sizes() if n.endswith(".jsonl")]
    own_names = [n for n in files if n != name and not n.endswith("_shots")]
    near = _nearest(name, [*TASKS, *own_names])
    raise ValueError(
      f"There is no task {name!r}, nor a file {file}.jsonl in {data} that would be one; near "
      f"are {near}."
    )
  return rows.read(data, file)


def _file_of(name: str) -> str:
  return name.removesuffix(_NOISE).removesuffix(translation.FROM_ENGLISH)


def _own(name: str, row: Row) -> Task:
  """A user's task, as its first row says."""
  clean = name.removesuffix(_NOISE)
  found = own.find(clean, row)
  task = noised.of(found) if found and clean != name else found
  if task is not None:
    return task
  what = f"There is no task {name!r}; near are {_nearest(name, TASKS)}."
  if found:
    raise ValueError(f"{what} Only multiple choice and documents have a form with noise.")
  if row:
    raise ValueError(
      f"{what} {getattr(row, 'place', 'Row 1')} has fields {', '.join(row)}, which make no "
      f"task of a user's own either; nearest are {own.nearest_fields(row)}."
    )
  raise ValueError(what)


def _nearest(name: str, names: Sequence[str] | dict[str, Task]) -> str:
  own_names = [n for n in names if n not in TASKS]
  return ", ".join(difflib.get_close_matches(name, names, n=3) or [*own_names, *sorted(TASKS)])
