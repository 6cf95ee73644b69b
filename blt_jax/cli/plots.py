"""Figures for files, where matplotlib is installed."""

from typing import Any


def import_pyplot() -> Any:
  """The module `matplotlib.pyplot`, which then needs no screen.

  Raises:
    ImportError: matplotlib is missing.
  """
  try:
    import matplotlib
  except ImportError as error:
    raise ImportError("--png needs matplotlib: pip install 'blt_jax[plot]'.") from error
  matplotlib.use("Agg")
  from matplotlib import pyplot

  return pyplot
