"""Runs Python programs that nobody has read, with limits.

A program runs in a process of its own, in an empty folder, without environment. Where the
kernel allows it, it is in namespaces without network and with processes of its own, and writes
to nothing but that folder, which is in memory, of a bounded size, and gone afterwards. That
keeps accidents away, not attacks: it can read the user's files.
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
from typing import IO, Any

from blt_jax.evals import limited

_PROCESSES = 64  # beside those that the user has already
_NAMESPACES = ("--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child")
_NOBODY = 65534  # the user with the fewest rights; limits on processes do not hold for root


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
class Limits:
  """The most that a program takes.

  Attributes:
    timeout_s: seconds, of the clock and of the processor.
    memory_bytes: of the address space of each of its processes.
    file_bytes: of a file that it writes, and of its output.
    disk_bytes: of all its files, where it is confined to them.
  """

  timeout_s: float = 10
  memory_bytes: int = 2**30
  file_bytes: int = 2**24
  disk_bytes: int = 2**26


def run_program(
  program: str,
  tests: str,
  timeout_s: float = 10,
  memory_bytes: int = 2**30,
  file_bytes: int = 2**24,
  disk_bytes: int = 2**26,
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
  """
  limits = Limits(timeout_s, memory_bytes, file_bytes, disk_bytes)
  is_passed, is_late, errors = _run(_best_way(), f"{program}\n{tests}\n", limits)
  if is_passed:
    return "passed"
  if is_late:
    return "timed out"
  return "out of memory" if "MemoryError" in errors else "failed"


@functools.cache
def _best_way() -> Way:
  """The way with the most limits of those that work here."""
  users = (_NOBODY, None) if os.getuid() == 0 else (None,)
  found = shutil.which("unshare") is not None
  namespaces = ((*_NAMESPACES, "--mount"), _NAMESPACES) if found else ()
  for options in (*namespaces, ()):
    for user in users:
      with contextlib.suppress(OSError):
        if _run(Way(options, user), "", Limits())[0]:
          return Way(options, user)
  return Way()


def _run(way: Way, program: str, limits: Limits) -> tuple[bool, bool, str]:
  """Whether a program reached its end, whether it had to be stopped, the end of its errors."""
  token = secrets.token_hex(16)
  with contextlib.ExitStack() as stack:
    home = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
    output = stack.enter_context(tempfile.TemporaryFile())
    heard, says = os.pipe()
    said = stack.enter_context(open(heard, "rb", buffering=0))
    os.set_blocking(heard, False)  # what a program left behind may hold the other end
    folder, source = home / "work", home / "program.py"
    folder.mkdir()
    mark = f"open({says}, 'w').write({token!r})\n"
    source.write_text(program + mark, "utf-8", "surrogatepass")
    if way.user is not None:
      _give(home, folder, way.user)
    with open(says, "wb"):
      process = _start(way, source, folder, limits, says, output)
    is_late = _wait(process, limits.timeout_s)
    size = output.seek(0, os.SEEK_END)
    output.seek(max(size - 2000, 0))
    errors = output.read().decode(errors="replace")
    told = said.read(100) or b""
    if not is_late and not told:
      raise OSError(f"Programs cannot be started: {errors.strip()}")
    return told == limited.BEGUN + token.encode(), is_late, errors


def _give(home: pathlib.Path, folder: pathlib.Path, user: int) -> None:
  """Lets a user into a folder of this one, and gives them another within."""
  home.chmod(0o755)
  os.chown(folder, user, user)


def _start(
  way: Way,
  source: pathlib.Path,
  folder: pathlib.Path,
  limits: Limits,
  says: int,
  output: IO[bytes],
) -> subprocess.Popen:
  """Starts a program in a folder, with the pipe that it tells its end to."""
  command = [sys.executable, "-I", limited.__file__]
  if way.namespaces:
    command = [shutil.which("unshare") or "unshare", *way.namespaces, *command]
  numbers = [
    _num_tasks(os.getuid() if way.user is None else way.user) + _PROCESSES,
    int(limits.timeout_s) + 1,
    limits.memory_bytes,
    limits.file_bytes,
    limits.disk_bytes if way.is_confined else 0,
    says,
  ]
  other: Any = (
    {} if way.user is None else {"user": way.user, "group": way.user, "extra_groups": []}
  )
  return subprocess.Popen(
    [*command, *map(str, numbers), str(source)], cwd=folder, env={}, stdin=subprocess.DEVNULL,
    stdout=subprocess.DEVNULL, stderr=output, start_new_session=True, pass_fds=[says], **other,
  )  # fmt: skip


def _wait(process: subprocess.Popen, timeout_s: float) -> bool:
  """Waits for a program and ends its whole group; whether it was too late."""
  try:
    process.wait(timeout_s)
    return process.returncode == -signal.SIGXCPU
  except subprocess.TimeoutExpired:
    return True
  finally:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _num_tasks(user: int) -> int:
  """Processes and threads of a user, as Linux counts them; 0 where it does not say."""
  count = 0
  for process in pathlib.Path("/proc").glob("[0-9]*"):
    with contextlib.suppress(OSError):  # it has ended
      if process.stat().st_uid == user:
        count += len(os.listdir(process / "task"))
  return count
