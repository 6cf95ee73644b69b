"""Processes that this one starts, and that end with it."""

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn


@contextlib.contextmanager
def ending_with_this() -> Iterator[list[subprocess.Popen]]:
  """A list for processes; those that still run at the end of the block are ended.

  That is so too where this process gets SIGTERM meanwhile, which then ends it.
  """
  processes: list[subprocess.Popen] = []

  def end(signum: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signum)

  is_main = threading.current_thread() is threading.main_thread()
  before = signal.signal(signal.SIGTERM, end) if is_main else None
  try:
    yield processes
  finally:
    if is_main:
      signal.signal(signal.SIGTERM, before)
    for process in processes:
      if process.poll() is None:
        process.terminate()
        process.wait()


def start(command: str, arguments: Sequence[str], **options: Any) -> subprocess.Popen:
  """Starts a command of this package; options are those of `subprocess.Popen`."""
  whole = [sys.executable, "-m", f"blt_jax.{command}", *arguments]
  return subprocess.Popen(whole, text=True, **options)
