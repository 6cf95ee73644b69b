"""The suite: tasks by name, asked of a model."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from blt_jax.decode.language_model import LanguageModel
from blt_jax.evals import asking, rows, samples
from blt_jax.evals.memory import Memory
from blt_jax.evals.registry import TASKS as TASKS
from blt_jax.evals.registry import find, find_all
from blt_jax.evals.statistics import Estimate, interval
from blt_jax.evals.task import Choice, Item, Request, Row, Score, Task


@dataclasses.dataclass(frozen=True)
class TaskReport:
  """What a model did at a task.

  Attributes:
    task: which.
    items: its rows, with their examples.
    asked: the requests of each item.
    answers: [i][j] to the j-th request of item i.
    scores: of each item.
    summary: over all.
    intervals: of 95 %, by bootstrap over items.
    groups: field -> its value -> the summary of the items that have it.
    num_cut: items for all of which the model had no room; see `asking.ask`.
  """

  task: Task
  items: Sequence[Item]
  asked: Sequence[Sequence[Request]]
  answers: Sequence[Sequence[Any]]
  scores: Sequence[Score]
  summary: dict[str, Estimate]
  intervals: dict[str, tuple[float, float]]
  groups: dict[str, dict[str, dict[str, Estimate]]]
  num_cut: int = 0


Report = dict[str, TaskReport]


def requests(
  name: str, rows: Sequence[Row], shots: Sequence[Row] | None = None
) -> list[list[Request]]:
  """What a task asks of each row.

  Args:
    name: of the task.
    rows: of its file.
    shots: rows that become answered examples.

  Raises:
    ValueError: there is no such task, or a row is none of its rows.
  """
  task = find(name, rows=rows)
  return _requests(task, task.load(rows, shots or ()))


def scores(
  name: str,
  rows: Sequence[Row],
  answers: Sequence[Sequence[Any]],
  shots: Sequence[Row] | None = None,
  run_code: bool = False,
) -> tuple[list[Score], dict[str, Estimate]]:
  """Numbers of answers: of each row, and (value, standard error) over all.

  Args:
    name: of the task.
    rows: of its file.
    answers: [i][j] to the j-th request of row i: of a `Choice` [(nats, is_greedy)] for each
      continuation, of a `Text` nats, of a `Continue` text.
    shots: as for `requests`.
    run_code: whether programs that a model wrote may run.

  Raises:
    ValueError: as `requests`, or the task runs programs and may not.
  """
  task = find(name, run_code=run_code, rows=rows)
  task.check_ready()
  items = task.load(rows, shots or ())
  by_item = [task.score(item, a) for item, a in zip(items, answers, strict=True)]
  return by_item, task.summarise(by_item)


def evaluate(
  model: LanguageModel,
  tasks: Sequence[str],
  data: str,
  limit: int | None = None,
  seed: int = 0,
  batch_size: int = 8,
  run_code: bool = False,
  progress: Callable[[str, int, int], None] = lambda task, done, total: None,
  memory: Memory | None = None,
) -> Report:
  """Asks a model all tasks.

  Args:
    model: see `decode.language_model`.
    tasks: their names.
    data: folder of their files, or "sample" for those of the package.
    limit: of rows of each; None for all.
    seed: of noises.
    batch_size: texts at a time.
    run_code: whether programs that the model writes may run.
    progress: called with the task's name, the bytes done and all of them, nearly.
    memory: of answers that were given before, and those that are given now.

  Raises:
    FileNotFoundError: a task has no file there.
    ValueError: a name is that of no task, or a row is none of its task.
  """
  return ask(model, prepare(tasks, data, limit, seed, run_code), batch_size, progress, memory)


class Prepared(NamedTuple):
  """A task with its items, and the requests of each."""

  task: Task
  items: Sequence[Item]
  asked: Sequence[Sequence[Request]]


def prepare(
  tasks: Sequence[str],
  data: str,
  limit: int | None = None,
  seed: int = 0,
  run_code: bool = False,
  shots: str | None = None,
) -> list[Prepared]:
  """Reads all that is to be asked; for other arguments and errors see `evaluate`.

  Examples are in the folder `shots`, by default beside their task's file.

  Raises:
    ValueError: there are none in `shots`.
  """
  data = samples.locate(data)
  found = find_all(tasks, data, seed, run_code)
  loaded = [_load(task, data, limit, data if shots is None else shots) for task in found]
  if shots is not None and not any(item.shots for items in loaded for item in items):
    raise ValueError(f"{shots} has examples for none of {', '.join(tasks)}.")
  return [
    Prepared(task, items, _requests(task, items))
    for task, items in zip(found, loaded, strict=True)
  ]


def ask(
  model: LanguageModel,
  prepared: Sequence[Prepared],
  batch_size: int = 8,
  progress: Callable[[str, int, int], None] = lambda task, done, total: None,
  memory: Memory | None = None,
  devices: Sequence[jax.Device] = (),
) -> Report:
  """Asks a model what `prepare` read; for the other arguments see `evaluate`.

  Args:
    model: see `decode.language_model`.
    prepared: what to ask.
    batch_size: texts at a time, on each device.
    progress: see `evaluate`.
    memory: likewise.
    devices: that share the work, each with the whole model; by default where it is.
  """
  report = {}
  for task, items, asked in prepared:
    told = functools.partial(progress, task.name)
    answers = _ask(model, asked, batch_size, memory or Memory(None, {}), told, devices)
    num_cut = sum(any(asking.is_cut(model, r) for r in some) for some in asked)
    found = summarise(task, items, asked, answers)
    report[task.name] = dataclasses.replace(found, num_cut=num_cut)
  return report


def summarise(
  task: Task,
  items: Sequence[Item],
  asked: Sequence[Sequence[Request]],
  answers: Sequence[Sequence[Any]],
) -> TaskReport:
  """Scores the answers of a task."""
  by_item = [task.score(item, a) for item, a in zip(items, answers, strict=True)]
  statistics = task.statistics(by_item)
  summary = {name: found.estimate() for name, found in statistics.items()}
  intervals = {name: interval(found.resample()) for name, found in statistics.items()}
  given = [f for f in task.groups if any(f in item.row for item in items)]
  groups = {field: _by_value(task, field, items, by_item) for field in given}
  return TaskReport(task, items, asked, answers, by_item, summary, intervals, groups)


def _by_value(task, field, items, by_item) -> dict[str, dict[str, Estimate]]:
  """The summary of the items of each value of a field, which not all may have."""
  found: dict[str, list[Score]] = {}
  for item, score in zip(items, by_item, strict=True):
    if field in item.row:
      found.setdefault(str(item.row[field]), []).append(score)
  return {value: task.summarise(some) for value, some in sorted(found.items())}


def _requests(task: Task, items: Sequence[Item]) -> list[list[Request]]:
  """What a task asks of items, whose fields may be of other types than it knows."""
  found = []
  for number, item in enumerate(items, 1):
    place = f"{getattr(item.row, 'place', f'Row {number}')} of {task.name}"
    try:
      asked = task.requests(item)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
      raise ValueError(
        f"{place} has a field of another type than its task's: {error}."
      ) from error
    for request in asked:
      more = request.continuations if isinstance(request, Choice) else ()
      if wrong := [part for part in (request[0], *more) if not isinstance(part, str)]:
        raise ValueError(f"{place} asks {wrong[0]!r}, which is no text.")
    found.append(asked)
  return found


def _load(task: Task, data: str, limit: int | None, shots: str) -> list[Item]:
  found = task.select(rows.read(data, task.file))[:limit]
  if not found:
    raise ValueError(f"{task.file}.jsonl has no rows that are of {task.name}.")
  return task.load(found, rows.read_shots(shots, task.file) if task.num_shots else ())


def _ask(
  model: LanguageModel,
  asked: Sequence[Sequence[Request]],
  batch_size: int,
  memory: Memory,
  progress: Callable[[int, int], None],
  devices: Sequence[jax.Device],
) -> list[list[Any]]:
  """Answers of each item, those that are known first."""
  sizes = [asking.size(requests) for requests in asked]
  answers = {i: known for i, r in enumerate(asked) if (known := memory.find(r)) is not None}
  done = sum(sizes[i] for i in answers)
  rest = [i for i in range(len(asked)) if i not in answers]
  progress(done, sum(sizes))
  for place, told in asking.ask(model, [asked[i] for i in rest], batch_size, devices):
    item = rest[place]
    answers[item] = told
    memory.add(asked[item], told)
    done += sizes[item]
    progress(done, sum(sizes))
  return [answers[i] for i in range(len(asked))]
