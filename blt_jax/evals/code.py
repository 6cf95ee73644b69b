"""Programs that a model wrote, run against tests: HumanEval and MBPP.

A program runs in a process of its own with limits, in an empty folder, without environment,
where the kernel allows it in namespaces without network and with processes of its own. That
keeps accidents away, not attacks: it blocks neither reading nor writing the user's files.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from blt_jax.evals import limited
from blt_jax.evals.task import Continue, Item, Request, Row, Score, Task

_PROCESSES = 64  # beside those that the user has already
_NAMESPACES = (
  "unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child",
)  # fmt: skip


def run_program(
  program: str,
  tests: str,
  timeout_s: float = 10,
  memory_bytes: int = 2**30,
  file_bytes: int = 2**24,
) -> str:
  """Runs a program, and then its tests, in one file.

  Args:
    program: Python.
    tests: Python that raises where the program is wrong.
    timeout_s: seconds, of the clock and of the processor.
    memory_bytes: most of the address space of each of its processes.
    file_bytes: most of a file that it writes, and of its output.

  Returns:
    "passed", only if a mark was written that stands behind the tests; "failed", "timed out",
    or "out of memory".

  Raises:
    OSError: programs cannot be started.
  """
  token = secrets.token_hex(16)
  with tempfile.TemporaryDirectory() as home:
    folder, end = pathlib.Path(home, "work"), pathlib.Path(home, "end")
    folder.mkdir()
    mark = f"open({str(end)!r}, 'w').write({token!r})"
    source = pathlib.Path(home, "program.py")
    source.write_text(f"{program}\n{tests}\n{mark}\n", "utf-8", "surrogatepass")
    limits = [int(timeout_s) + 1, memory_bytes, file_bytes]
    is_late, errors = _run(source, folder, limits, timeout_s)
    with contextlib.suppress(OSError):
      if end.read_text() == token:
        return "passed"
  if is_late:
    return "timed out"
  return "out of memory" if "MemoryError" in errors else "failed"


def _run(
  source: pathlib.Path, folder: pathlib.Path, limits: Sequence[int], timeout_s: float
) -> tuple[bool, str]:
  """Whether a program had to be stopped, and the end of what it wrote as errors."""
  begun, begins = os.pipe()
  numbers = [_num_tasks() + _PROCESSES, *limits, begins]
  command = [*_isolation(), sys.executable, "-I", limited.__file__, *map(str, numbers)]
  with tempfile.TemporaryFile() as output, open(begun, "rb") as started:
    with open(begins, "wb"):
      process = subprocess.Popen(
        [*command, str(source)], cwd=folder, env={}, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=output, start_new_session=True, pass_fds=[begins],
      )  # fmt: skip
    try:
      process.wait(timeout_s)
      is_late = process.returncode == -signal.SIGXCPU
    except subprocess.TimeoutExpired:
      is_late = True
    finally:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
      process.wait()
    size = output.seek(0, os.SEEK_END)
    output.seek(max(size - 2000, 0))
    errors = output.read().decode(errors="replace")
    if not is_late and not started.read(1):
      raise OSError(f"Programs cannot be started: {errors.strip()}")
    return is_late, errors


def _num_tasks() -> int:
  """Processes and threads of this user, as Linux counts them; 0 where it does not say."""
  count = 0
  for process in pathlib.Path("/proc").glob("[0-9]*"):
    with contextlib.suppress(OSError):  # it has ended
      if process.stat().st_uid == os.getuid():
        count += len(os.listdir(process / "task"))
  return count


@functools.cache
def _isolation() -> tuple[str, ...]:
  """What starts a command in namespaces of its own; nothing where the kernel refuses."""
  path = shutil.which(_NAMESPACES[0])
  if path is None:
    return ()
  command = (path, *_NAMESPACES[1:])
  tried = subprocess.run([*command, sys.executable, "-c", ""], capture_output=True, check=False)
  return command if tried.returncode == 0 else ()


@dataclasses.dataclass(frozen=True)
class CodeTask(Task):
  """A task whose answers are run.

  Attributes:
    run_code: the user's leave to do so.
  """

  run_code: bool = False

  def program(self, item: Item, answer: str) -> tuple[str, str]:
    """A whole program, and its tests."""
    raise NotImplementedError

  def score(self, item: Item, answers: Sequence[Any]) -> Score:
    """`pass@1`; see `check_ready`."""
    self.check_ready()
    return {"pass@1": float(run_program(*self.program(item, answers[0])) == "passed")}

  def check_ready(self) -> None:
    """Raises ValueError where nobody gave leave to run programs."""
    if not self.run_code:
      raise ValueError(
        f"{self.name} runs programs that a model wrote, which nobody has read: give --run_code "
        "(run_code=True) if this machine may."
      )


class HumanEval(CodeTask):
  """The body of a function, from its head and docstring."""

  def requests(self, item: Item) -> list[Request]:
    """The rest of the function."""
    stop = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
    return [Continue(item.row["prompt"], stop, 1536)]

  def program(self, item: Item, answer: str) -> tuple[str, str]:
    """The function, and the row's tests of it."""
    row = item.row
    return row["prompt"] + answer, f"{row['test']}\ncheck({row['entry_point']})"


class Mbpp(CodeTask):
  """A function, from a sentence and three tests."""

  def requests(self, item: Item) -> list[Request]:
    """The function, after examples."""
    shots = [f"{_prompt(shot)}{shot['code']}\n[DONE]\n\n" for shot in item.shots]
    return [Continue("".join(shots) + _prompt(item.row), ("[DONE]",), 1024)]

  def select(self, rows: Sequence[Row]) -> Sequence[Row]:
    """The test half of all 974, by their numbers; the others are examples and training."""
    return [row for row in rows if not _is_number(row) or 11 <= row.get("task_id", 11) <= 510]

  def check(self, row: Row) -> None:
    """Raises ValueError where a row lacks a field, or its number is none."""
    super().check(row)
    if not _is_number(row):
      raise ValueError(f"has task_id {row['task_id']!r}; it must be a whole number.")

  def program(self, item: Item, answer: str) -> tuple[str, str]:
    """What was written, and the row's tests."""
    row = item.row
    return f"{row.get('test_setup_code', '')}\n{answer}", "\n".join(row["test_list"])


def _is_number(row: Row) -> bool:
  return isinstance(row.get("task_id", 11), int)


def _prompt(row: Row) -> str:
  tests = "\n".join(row["test_list"][:3])
  return (
    f"You are an expert Python programmer, and here is your task: {row['text']} Your code "
    f"should pass these tests:\n\n{tests}\n[BEGIN]\n"
  )


TASKS = (
  HumanEval("humaneval", "humaneval", ("prompt", "entry_point", "test"), metric="pass@1"),
  Mbpp("mbpp", "mbpp", ("text", "code", "test_list"), num_shots=3, metric="pass@1"),
)
