"""The suite: tasks by name, asked of a model."""

import dataclasses
import difflib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from blt_jax.decode import Generator, Sampling, Scorer
from blt_jax.decode.language_model import LanguageModel
from blt_jax.evals import choices, code, cute, g2p, gsm8k, language, noised, rows, statistics
from blt_jax.evals.statistics import Estimate
from blt_jax.evals.task import Choice, Continue, Item, Request, Row, Score, Task, Text

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
  """

  task: Task
  items: Sequence[Item]
  asked: Sequence[Sequence[Request]]
  answers: Sequence[Sequence[Any]]
  scores: Sequence[Score]
  summary: dict[str, Estimate]
  intervals: dict[str, tuple[float, float]]
  groups: dict[str, dict[str, Estimate]]


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
    progress: called with the task's name, the requests done and all of them.

  Raises:
    FileNotFoundError: a task has no file there.
    ValueError: a name is that of no task, or a row is none of its task.
  """
  found = find_all(tasks, seed, run_code)
  loaded = [_load(task, data, limit) for task in found]
  report = {}
  for task, items in zip(found, loaded, strict=True):
    asked = [task.requests(item) for item in items]
    told = _ask(model, [r for some in asked for r in some], batch_size, task.name, progress)
    answers = [[next(told) for _ in some] for some in asked]
    report[task.name] = summarise(task, items, asked, answers)
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


def _ask(model, asked, batch_size, name, progress) -> Iterator[Any]:
  """Answers in the order of the requests."""
  order = sorted(range(len(asked)), key=lambda i: -_size(asked[i]))
  answers: list[Any] = [None] * len(asked)
  part = max(batch_size * 16, 64)
  for start in range(0, len(order), part):
    chosen = order[start : start + part]
    for kind, answer in _ANSWERS.items():
      own = [i for i in chosen if isinstance(asked[i], kind)]
      told = answer(model, [asked[i] for i in own], batch_size) if own else []
      for i, one in zip(own, told, strict=True):
        answers[i] = one
    progress(name, min(start + part, len(asked)), len(asked))
  return iter(answers)


def _size(request: Request) -> int:
  if isinstance(request, Choice):
    return len(request.context) + max(map(len, request.continuations))
  return len(request[0])


def _answer_choices(model, asked, batch_size):
  pairs = [(choice.context, c) for choice in asked for c in choice.continuations]
  told = iter(Scorer(model, batch_size=batch_size).loglikelihood(pairs))
  return [[tuple(next(told)) for _ in choice.continuations] for choice in asked]


def _answer_texts(model, asked, batch_size):
  return Scorer(model, batch_size=batch_size).loglikelihood_rolling([r.text for r in asked])


def _answer_continuations(model, asked, batch_size):
  prompts = [request.prompt for request in asked]
  longest = max(len(p.encode()) + r.max_bytes for p, r in zip(prompts, asked, strict=True)) + 1
  options = [Sampling(max_bytes=r.max_bytes, stop=r.stop, temperature=0.0) for r in asked]
  generator = Generator(model, batch_size=batch_size, max_length=-(-longest // 256) * 256)
  return [told.text for told in generator.generate(prompts, options)]


_ANSWERS: dict[type, Callable[..., list[Any]]] = {
  Choice: _answer_choices,
  Text: _answer_texts,
  Continue: _answer_continuations,
}
