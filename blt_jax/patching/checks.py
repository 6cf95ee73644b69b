"""Numbers that are none: NaN, truth values and text, where entropies and thresholds enter."""

import itertools
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


def check_nested(finest: Any, coarser: tuple[float, ...], rule: str) -> None:
  """Raises ValueError unless coarse patches are several fine ones each, at all resolutions.

  Args:
    finest: threshold of the finest resolution, or its bytes per patch under the static rule.
    coarser: those of the others, from fine to coarse.
    rule: "entropy" for all rules in which a threshold is compared with each byte alone.
  """
  if rule not in ("entropy", "static"):
    raise ValueError(
      f"coarser is {coarser}, and the {rule} rule makes no patches that several thresholds "
      "nest: take the entropy scheme with a threshold (global, monotonic or threshold_add) or "
      "the static scheme, or leave coarser empty."
    )
  if not all(map(is_number, coarser)):
    raise ValueError(f"coarser is {coarser}; it must hold numbers.")
  for fine, coarse in itertools.pairwise((finest, *coarser)):
    if not fine < coarse:
      raise ValueError(
        f"coarser is {coarser} above {finest}: {coarse} follows {fine}; resolutions must rise, "
        "from fine to coarse."
      )
    if rule == "static" and coarse % fine:
      raise ValueError(
        f"coarser is {coarser} above patch_size {finest}: {fine} does not divide {coarse}, so "
        "static patches do not nest; choose multiples."
      )
