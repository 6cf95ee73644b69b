"""Console output of the programs."""

import logging as python_logging

from absl import logging


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
