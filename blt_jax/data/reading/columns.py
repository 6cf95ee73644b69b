"""The text in columns of Arrow data, and values beside it, as Parquet and Arrow hold them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from blt_jax.data.reading import answers
from blt_jax.data.reading.documents import BadInputError, Document, SourceOptions

# `Any` stands for types of pyarrow, which is an extra and imported where it is needed.


def find(schema: Any, options: SourceOptions) -> tuple[str, list[str]]:
  """Looks for what makes the documents of a schema.

  Returns:
    The column of their text, or "" where there are prompts and answers instead; and the
    columns of values of each row that are wanted.

  Raises:
    BadInputError: as `check`, or the columns of prompts and answers are missing.
  """
  if options.template is None:
    return check(schema, options.text_field), tops(schema, options.fields)
  names = set(tops(schema, answers.FIELDS))
  if answers.MESSAGES not in names and not names.issuperset(answers.PAIR):
    raise BadInputError(
      "no columns of prompts and answers",
      f"'prompt' and 'completion', or 'messages'; there are {schema.names[:20]}",
    )
  return "", tops(schema, (*sorted(names), *options.fields))


def to_document(text: bytes | None, row: Mapping[str, Any], options: SourceOptions) -> Document:
  """The document of a row, from its text and the values that `find` named.

  Raises:
    BadInputError: there is none.
  """
  if options.template is not None:
    document = answers.to_document(row, options.template)
  elif text is None:
    raise BadInputError("no text", "the value is null")
  else:
    document = Document(text)
  return dataclasses.replace(document, row=row) if options.fields else document


def check(schema: Any, name: str) -> str:
  """Looks for a column of text in a schema.

  Args:
    schema: of the file.
    name: of the column; dots lead into structs, where no column has the whole name.

  Returns:
    The name of the column at the top.

  Raises:
    BadInputError: there is none, there are several, or it holds no text.
  """
  top, *path = [name] if name in schema.names else name.split(".")
  if (count := schema.names.count(top)) != 1:
    _reject(schema.names, name, "no column" if not count else f"{count} columns")
  kind = schema.field(top).type
  for part in path:
    kind = _child(kind, part) or _reject(schema.names, name, "no column")
  if not _is_text(kind):
    raise BadInputError(f"no text in column {name!r}", f"but {kind}")
  return top


def take(column: Any, name: str, top: str) -> Any:
  """The text of a column that `check` found, as an array of large binary."""
  import pyarrow as pa
  from pyarrow import compute

  if name != top:
    for part in name.split(".")[1:]:
      column = compute.struct_field(column, [part])
  if pa.types.is_dictionary(column.type):
    column = column.cast(column.type.value_type)
  column = column.cast(pa.large_binary())
  return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def tops(schema: Any, fields: Sequence[str]) -> list[str]:
  """The columns of a schema, each once, in which fields may be; see `fields.look_up`."""
  found = [name if name in schema.names else name.partition(".")[0] for name in fields]
  return [name for name in dict.fromkeys(found) if schema.names.count(name) == 1]


def take_row(table: Any, number: int, names: Sequence[str]) -> dict[str, Any]:
  """The values of a row of a table; the other columns that its file names have none."""
  values = {name: table.column(name)[number].as_py() for name in table.schema.names}
  return dict.fromkeys(names) | values


def _child(kind: Any, name: str) -> Any:
  """The type of a field of a struct; None where there is no such one."""
  import pyarrow as pa

  if not pa.types.is_struct(kind) or kind.get_field_index(name) < 0:
    return None
  return kind.field(name).type


def _is_text(kind: Any) -> bool:
  import pyarrow as pa

  texts = pa.string(), pa.large_string(), pa.string_view()
  known = (*texts, pa.binary(), pa.large_binary(), pa.binary_view(), pa.null())
  return (kind.value_type if pa.types.is_dictionary(kind) else kind) in known


def _reject(names: list[str], name: str, what: str) -> Any:
  details = f"its columns: {', '.join(map(repr, names[:20]))}; text_field says which"
  raise BadInputError(f"{what} {name!r}", details)
