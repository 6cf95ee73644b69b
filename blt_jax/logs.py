"""Console output of the programs."""

import logging as python_logging

from absl import logging


def show_progress() -> None:
  """Shows this package's messages, and warnings of the libraries below it."""
  logging.use_absl_handler()
  logging.set_verbosity(logging.INFO)
  handler = logging.get_absl_handler()
  handler.setFormatter(python_logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
  handler.addFilter(_is_ours)


def _is_ours(record: python_logging.LogRecord) -> bool:
  return record.levelno >= python_logging.WARNING or "blt_jax" in record.pathname
