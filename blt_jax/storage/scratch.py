"""Large arrays that live on a disk and not in memory, and vanish with their last user."""

import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from blt_jax.storage import paths
from blt_jax.storage.paths import Path


def zeros_beside(path: Path) -> Callable[[tuple[int, ...], Any], np.ndarray]:
  """What makes arrays of zeros, in nameless files.

  Args:
    path: near which they lie; where it is remote, they are among the temporary files (TMPDIR).

  Returns:
    A function of a shape and a dtype.
  """
  folder = None if paths.is_remote(path) else pathlib.Path(paths.absolute(path)).parent

  def zeros(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    with tempfile.TemporaryFile(dir=folder) as file:
      return np.memmap(file, dtype, "w+", shape=shape)

  return zeros
