"""Numbers that are none: NaN, truth values and text, where entropies and thresholds enter."""

import numbers
from typing import Any

import numpy as np

from blt_jax.patching.arrays import is_traced, namespace

_HALF_INFINITY = 0x7C00  # float16, as bits


def is_number(value: Any) -> bool:
  """Whether a value is a real number: no truth value, no text and no NaN."""
  is_real = isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool_)
  return is_real and value == value


def check_entropies(entropies: Any) -> None:
  """Looks at entropies [...] of any dtype; traced ones cannot be looked at.

  Raises:
    ValueError: some are NaN.
  """
  if isinstance(entropies, np.ndarray) and entropies.dtype == np.float16:
    largest = np.ascontiguousarray(entropies).view(np.uint16).max(initial=0)
    if largest <= _HALF_INFINITY:  # above, as bits, are NaN and negative numbers: rare
      return
  if not is_traced(entropies) and namespace(entropies).isnan(entropies).any():
    raise ValueError("Entropies hold NaN: what made them is damaged; make them again.")
