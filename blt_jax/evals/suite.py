"""The suite: tasks by name, asked of a model."""

import dataclasses
import difflib
import functools
from collections.abc import Callable, Sequence
from typing import Any

from blt_jax.decode.language_model import LanguageModel
from blt_jax.evals import (
  asking,
  choices,
  code,
  cute,
  g2p,
  gsm8k,
  language,
  noised,
  rows,
  statistics,
)
from blt_jax.evals.memory import Memory
from blt_jax.evals.statistics import Estimate
from blt_jax.evals.task import Item, Request, Row, Score, Task

_PLAIN: tuple[Task, ...] = (
  *choices.TASKS, *language.TASKS, *gsm8k.TASKS, *g2p.TASKS, *cute.TASKS, *code.TASKS
)  # fmt: skip
_SPOILED = [noised.of(task) for task in choices.TASKS]
TASKS: dict[str, Task] = {task.name: task for task in (*_PLAIN, *_SPOILED)}


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
    intervals: of 95 %, by bootstrap over items, of what is a mean over them.
    groups: by the values of the task's group.
    num_cut: items for all of which the model had no room; see `asking.ask`.
  """

  task: Task
  items: Sequence[Item]
  asked: Sequence[Sequence[Request]]
  answers: Sequence[Sequence[Any]]
  scores: Sequence[Score]
  summary: dict[str, Estimate]
  intervals: dict[str, tuple[float, float]]
  groups: dict[str, dict[str, Estimate]]
  num_cut: int = 0


Report = dict[str, TaskReport]


def find(name: str, seed: int = 0, run_code: bool = False) -> Task:
  """The task of a name.

  Args:
    name: of `TASKS`.
    seed: of its noises.
    run_code: whether programs that a model wrote may run.

  Raises:
    ValueError: there is none.
  """
  if name not in TASKS:
    near = difflib.get_close_matches(name, TASKS, n=3) or sorted(TASKS)
    raise ValueError(f"There is no task {name!r}; near are {', '.join(near)}.")
  task = TASKS[name]
  if isinstance(task, noised.Noised):
    return dataclasses.replace(task, seed=seed)
  return (
    dataclasses.replace(task, run_code=run_code) if isinstance(task, code.CodeTask) else task
  )


def find_all(names: Sequence[str], seed: int = 0, run_code: bool = False) -> list[Task]:
  """The tasks of several names; see `find`.

  Raises:
    ValueError: there is no such one, or it runs programs and may not.
  """
  found = [find(name, seed, run_code) for name in names]
  for task in found:
    if isinstance(task, code.CodeTask):
      task.check_leave()
  return found


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
  task = find(name)
  return [task.requests(item) for item in task.load(rows, shots or ())]


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
  task = find(name, run_code=run_code)
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
    data: folder of their files.
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
  found = find_all(tasks, seed, run_code)
  loaded = [_load(task, data, limit) for task in found]
  report = {}
  for task, items in zip(found, loaded, strict=True):
    asked = [task.requests(item) for item in items]
    told = functools.partial(progress, task.name)
    answers = _ask(model, asked, batch_size, memory or Memory(None, {}), told)
    num_cut = sum(any(asking.is_cut(model, r) for r in some) for some in asked)
    found_out = summarise(task, items, asked, answers)
    report[task.name] = dataclasses.replace(found_out, num_cut=num_cut)
  return report


def summarise(
  task: Task,
  items: Sequence[Item],
  asked: Sequence[Sequence[Request]],
  answers: Sequence[Sequence[Any]],
) -> TaskReport:
  """Scores the answers of a task."""
  by_item = [task.score(item, a) for item, a in zip(items, answers, strict=True)]
  groups: dict[str, list[Score]] = {}
  for item, score in zip(items, by_item, strict=True):
    if task.group:
      groups.setdefault(str(item.row[task.group]), []).append(score)
  by_group = {name: task.summarise(some) for name, some in sorted(groups.items())}
  summary = task.summarise(by_item)
  intervals = {
    name: statistics.interval([score[name] for score in by_item])
    for name in summary.keys() & by_item[0].keys()
  }
  return TaskReport(task, items, asked, answers, by_item, summary, intervals, by_group)


def _load(task: Task, data: str, limit: int | None) -> list[Item]:
  found = task.select(rows.read(data, task.file))[:limit]
  return task.load(found, rows.read_shots(data, task.file) if task.num_shots else ())


def _ask(
  model: LanguageModel,
  asked: Sequence[Sequence[Request]],
  batch_size: int,
  memory: Memory,
  progress: Callable[[int, int], None],
) -> list[list[Any]]:
  """Answers of each item, those that are known first."""
  sizes = [asking.size(requests) for requests in asked]
  answers = {i: known for i, r in enumerate(asked) if (known := memory.find(r)) is not None}
  done, rest = (
    sum(sizes[i] for i in answers),
    [i for i in range(len(asked)) if i not in answers],
  )
  progress(done, sum(sizes))
  for place, told in asking.ask(model, [asked[i] for i in rest], batch_size):
    item = rest[place]
    answers[item] = told
    memory.add(asked[item], told)
    done += sizes[item]
    progress(done, sum(sizes))
  return [answers[i] for i in range(len(asked))]
