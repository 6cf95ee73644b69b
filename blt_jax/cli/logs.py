"""Console output of the programs."""

import logging as python_logging
import os
import sys
from collections.abc import Callable

from absl import logging


def run(main: Callable[[], str | int | None]) -> None:
  """Runs a program and exits with its status.

  Of a mistake it prints what the error says, and `python -X dev` also where it was found.
  """
  try:
    sys.exit(main())
  except BrokenPipeError:  # whoever reads has enough; nothing is left to be flushed
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)
  except KeyboardInterrupt:
    sys.exit(130)
  except (ValueError, OSError, ImportError) as error:
    if sys.flags.dev_mode:
      raise
    sys.exit(f"error: {error}")


def show_progress() -> None:
  """Shows this package's messages, and warnings of the libraries below it."""
  logging.use_absl_handler()
  logging.set_verbosity(logging.INFO)
  handler = logging.get_absl_handler()
  handler.setFormatter(python_logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
  handler.addFilter(_is_shown)


def _is_shown(record: python_logging.LogRecord) -> bool:
  if "blt_jax" in record.pathname:
    return True
  record.exc_info = None  # errors that matter are raised as well
  return record.levelno >= python_logging.WARNING
