"""Runs Python programs that nobody has read, with limits.

A program runs in a process of its own, in an empty folder, and sees nothing of the environment.
Where the kernel allows it, it is in namespaces without network and with processes of its own,
and writes to nothing but that folder, which is in memory, of a bounded size, and gone
afterwards; a warning says what is missing. That keeps accidents away, not attacks: it can read
the user's files.
"""

import contextlib
import dataclasses
import functools
import json
import math
import os
import pathlib
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from typing import IO, Any, NamedTuple

from absl import logging

from blt_jax.evals import limited

_PROCESSES = 64
_NAMESPACES = ("--user", "--map-root-user", "--net", "--ipc", "--pid", "--fork", "--kill-child")
_NOBODY = 65534  # the user with the fewest rights; limits on processes do not hold for root
_TRIAL_SECONDS = 60.0
# Else each thread reserves address space by the number of cores, which would be the limit.
_ENVIRONMENT = {"MALLOC_ARENA_MAX": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


class RefusedError(OSError):
  """Programs cannot be started in some way, or in none."""


@dataclasses.dataclass(frozen=True)
class Way:
  """How programs are started.

  Attributes:
    namespaces: options of `unshare`; none: without it.
    user: who runs them; None: who runs this.
  """

  namespaces: tuple[str, ...] = ()
  user: int | None = None

  @property
  def is_confined(self) -> bool:
    """Whether they write to their folder only."""
    return "--mount" in self.namespaces


@dataclasses.dataclass(frozen=True)
class _Limits:
  """As of `run_program`."""

  timeout_s: float = 10
  memory_bytes: int = 2**30
  file_bytes: int = 2**24
  disk_bytes: int = 2**26

  def __post_init__(self):
    for name, value in vars(self).items():
      if not 0 < value < math.inf:
        raise ValueError(f"{name} is {value}; it must be above 0 and finite.")


class _Outcome(NamedTuple):
  """Whether a program reached its end, or had to be stopped; the end of what it wrote."""

  is_passed: bool
  is_late: bool
  errors: str


def run_program(
  program: str,
  tests: str,
  timeout_s: float = _Limits.timeout_s,
  memory_bytes: int = _Limits.memory_bytes,
  file_bytes: int = _Limits.file_bytes,
  disk_bytes: int = _Limits.disk_bytes,
) -> str:
  """Runs a program, and then its tests, in one file.

  Args:
    program: Python.
    tests: Python that raises where the program is wrong.
    timeout_s: seconds, of the clock and of the processor.
    memory_bytes: most of the address space of each of its processes.
    file_bytes: most of a file that it writes, and of its output.
    disk_bytes: most of all its files, where the kernel lets users make file systems.

  Returns:
    "passed", only if a mark was written that stands behind the tests; "failed", "timed out",
    or "out of memory".

  Raises:
    OSError: programs cannot be started.
    ValueError: a limit is not above 0 and finite.
  """
  limits = _Limits(timeout_s, memory_bytes, file_bytes, disk_bytes)
  outcome = _run(_best_way(), f"{program}\n{tests}\n", limits)
  if outcome.is_passed:
    return "passed"
  if outcome.is_late:
    return "timed out"
  return "out of memory" if "MemoryError" in outcome.errors else "failed"


# --- Ways to start programs


@functools.cache
def _best_way() -> Way:
  """The way with the most limits of those that this machine does not refuse.

  Raises:
    OSError: there is none; or a trial failed for another reason, and is made again next time.
  """
  users = (_NOBODY, None) if os.getuid() == 0 else (None,)
  has_unshare = shutil.which("unshare") is not None
  namespaces = ((*_NAMESPACES, "--mount"), _NAMESPACES) if has_unshare else ()
  refused = RefusedError("Programs cannot be started.")
  for way in (Way(options, user) for options in (*namespaces, ()) for user in users):
    try:
      outcome = _run(way, "", _Limits(timeout_s=_TRIAL_SECONDS))
    except RefusedError as error:
      refused = error
      continue
    if outcome.is_late:
      raise OSError(f"An empty program took longer than {_TRIAL_SECONDS:.0f} s.")
    if outcome.is_passed:
      _say(way)
      return way
    refused = RefusedError(f"Programs cannot be started: {outcome.errors.strip()}")
  raise refused


def _say(way: Way) -> None:
  """Warns of what programs may do here."""
  may = []
  if not way.is_confined:
    may.append("write wherever their user can")
  if not way.namespaces:
    may.append("use the network and end their user's processes")
  if way.user is None and os.getuid() == 0:
    may.append("start any number of processes, as root")
  if may:
    logging.warning("Here programs that a model wrote can %s.", ", ".join(may))


# --- One program


def _run(way: Way, program: str, limits: _Limits) -> _Outcome:
  """Runs a program with a mark at its end.

  Raises:
    RefusedError: it was not started.
  """
  token = secrets.token_hex(16).encode()
  with contextlib.ExitStack() as stack:
    home = pathlib.Path(tempfile.mkdtemp()).resolve()
    stack.callback(_remove, home)
    errors = stack.enter_context(tempfile.TemporaryFile())
    read_end, write_end = os.pipe()
    marks = stack.enter_context(open(read_end, "rb", buffering=0))
    with open(write_end, "wb"):
      os.set_blocking(read_end, False)  # what a program left behind may hold the other end
      folder, source = home / "work", home / "program.py"
      folder.mkdir()
      mark = f"import os\nos.write({write_end}, {token!r})\n"
      source.write_text(program + mark, "utf-8", "surrogatepass")
      if way.user is not None:
        _give(home, folder, source, way.user)
      try:
        process = _start(way, source, folder, limits, write_end, errors)
      except (PermissionError, FileNotFoundError) as error:
        raise RefusedError(f"Programs cannot be started: {error}") from error
    is_late = _wait(process, limits.timeout_s)
    said, told = marks.read(100) or b"", _tail(errors)
    if not is_late and not said:
      raise RefusedError(f"Programs cannot be started: {told.strip()}")
    return _Outcome(said.startswith(limited.BEGUN + token), is_late, told)


def _give(home: pathlib.Path, folder: pathlib.Path, source: pathlib.Path, user: int) -> None:
  """Lets a user read a folder of this one, and write to another within."""
  home.chmod(0o755)
  source.chmod(0o644)
  os.chown(folder, user, user)


def _start(
  way: Way,
  source: pathlib.Path,
  folder: pathlib.Path,
  limits: _Limits,
  descriptor: int,
  errors: IO[bytes],
) -> subprocess.Popen:
  """Starts a program in a folder, with the descriptor that it writes its mark to."""
  others = 0 if _counts_anew(way) else _num_tasks(os.getuid() if way.user is None else way.user)
  terms = {
    "processes": others + _PROCESSES + 1,  # and who supervises them
    "seconds": int(limits.timeout_s) + 1,
    "memory_bytes": limits.memory_bytes,
    "file_bytes": limits.file_bytes,
    "disk_bytes": limits.disk_bytes,
    "confined": way.is_confined,
    "descriptor": descriptor,
  }
  command = [sys.executable, "-I", limited.__file__, json.dumps(terms), str(source)]
  if way.namespaces:
    command = [shutil.which("unshare") or "unshare", *way.namespaces, *command]
  other: Any = {}
  if way.user is not None:
    other = {"user": way.user, "group": way.user, "extra_groups": []}
  return subprocess.Popen(
    command, cwd=folder, env=_ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    stderr=errors, start_new_session=True, pass_fds=[descriptor], **other,
  )  # fmt: skip


def _wait(process: subprocess.Popen, timeout_s: float) -> bool:
  """Waits for a program and ends its whole group; whether it was too late."""
  try:
    process.wait(timeout_s)
    return process.returncode in (limited.CPU_TIME_IS_OVER, -signal.SIGXCPU)
  except subprocess.TimeoutExpired:
    return True
  finally:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tail(file: IO[bytes], size: int = 2000) -> str:
  """The end of a file, as text."""
  file.seek(max(file.seek(0, os.SEEK_END) - size, 0))
  return file.read().decode(errors="replace")


def _remove(folder: pathlib.Path) -> None:
  """Removes what a program leaves, whatever it is and however deep."""
  try:
    shutil.rmtree(folder, ignore_errors=True)
  except RecursionError:
    subprocess.run(["rm", "-rf", str(folder)], check=False)


def _counts_anew(way: Way) -> bool:
  """Whether the limit on processes leaves those of the same user outside uncounted."""
  numbers = [int(n) for n in re.findall(r"\d+", os.uname().release)[:2]]
  return bool(way.namespaces) and numbers >= [5, 14]


def _num_tasks(user: int) -> int:
  """Processes and threads of a user, as Linux counts them; 0 where it does not say."""
  count = 0
  for process in pathlib.Path("/proc").glob("[0-9]*"):
    with contextlib.suppress(OSError):  # it has ended
      if process.stat().st_uid == user:
        count += len(os.listdir(process / "task"))
  return count
