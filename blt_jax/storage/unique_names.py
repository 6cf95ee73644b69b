"""JSON objects whose names count: of a name with several values, parsers keep the last one."""

import collections
from typing import Any

SEVERAL = object()  # stands for the values of such a name


def mark(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """An `object_pairs_hook` for `json`: a name with several values has `SEVERAL`."""
  fields = dict(pairs)
  if len(fields) < len(pairs):
    counts = collections.Counter(name for name, _ in pairs)
    fields |= {name: SEVERAL for name, count in counts.items() if count > 1}
  return fields


def refuse(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """An `object_pairs_hook` for `json` that takes no name with several values.

  Raises:
    ValueError: there is one.
  """
  fields = mark(pairs)
  for name, value in fields.items():
    if value is SEVERAL:
      raise ValueError(f"several fields {name!r}")
  return fields
