"""Values of fields in a row, whatever format it was read from."""

from collections.abc import Mapping
from typing import Any

from blt_jax.storage import unique_names


def look_up(row: Mapping[str, Any], name: str) -> Any:
  """The value of a field.

  Args:
    row: its fields.
    name: of the field; dots lead into objects, where no field has the whole name.

  Raises:
    KeyError: there is none.
  """
  if name in row:
    return row[name]
  value: Any = row
  for part in name.split("."):
    if value is unique_names.SEVERAL:
      return value
    if not isinstance(value, Mapping) or part not in value:
      raise KeyError(name)
    value = value[part]
  return value
