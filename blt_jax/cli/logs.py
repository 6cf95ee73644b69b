"""Console output of the programs: messages, and how they end."""

import faulthandler
import logging as python_logging
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Callable

import jax
from absl import logging
from tqdm import tqdm

from blt_jax.cli import programs

_PACKAGE = f"{pathlib.Path(__file__).parents[1]}{os.sep}"
# What a user can do something about; anything else is a fault of this package.
_MISTAKES = (
  ValueError,
  OSError,
  ImportError,
  FloatingPointError,
  MemoryError,
  jax.errors.JaxRuntimeError,
)


def run(main: Callable[[], str | int | None]) -> None:
  """Runs a program and exits with its status.

  Of a mistake it prints what the error says, and `python -X dev` also where it was found.
  """
  faulthandler.enable()
  sys.unraisablehook = _not_lost
  programs.keep_programs()
  try:
    sys.exit(main())
  except BrokenPipeError:  # whoever reads has enough; nothing is left to be flushed
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)
  except KeyboardInterrupt:
    sys.exit(130)
  except _MISTAKES as error:
    if sys.flags.dev_mode:
      raise
    message = f"error: {error or type(error).__name__}"
    if (status := getattr(error, "exit_status", None)) is None:
      sys.exit(message)
    print(message, file=sys.stderr)
    sys.exit(status)


def _not_lost(ignored: "sys.UnraisableHookArgs") -> None:
  """Sends a Ctrl-C again that fell into a finaliser, of which Python only prints errors."""
  if issubclass(ignored.exc_type, KeyboardInterrupt):
    # Later, and by another thread, or it would fall into this function.
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
  else:
    sys.__unraisablehook__(ignored)


def show_progress() -> None:
  """Shows this package's messages, and warnings of the libraries below it."""
  logging.set_verbosity(logging.INFO)
  root = python_logging.getLogger()
  for handler in root.handlers[:]:
    if type(handler) is python_logging.StreamHandler:  # of a library that spoke first
      root.removeHandler(handler)
  root.addHandler(_CONSOLE)  # once, however often this is called


class _Console(python_logging.Handler):
  """Writes messages above progress bars."""

  def emit(self, record: python_logging.LogRecord) -> None:
    tqdm.write(self.format(record), file=sys.stderr)


def _is_shown(record: python_logging.LogRecord) -> bool:
  if record.pathname.startswith(_PACKAGE):
    return True
  record.exc_info = None  # errors that matter are raised as well
  return record.levelno >= python_logging.WARNING


_CONSOLE = _Console()
_CONSOLE.setFormatter(python_logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
_CONSOLE.addFilter(_is_shown)
