"""Documents in Parquet files."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from blt_jax.data.reading import columns
from blt_jax.data.reading.documents import BadInputError, Document, Policy
from blt_jax.data.reading.readers import Reader
from blt_jax.storage import files


class ParquetReader(Reader):
  """A column of Parquet files.

  A row can only be had with its whole row group, thousands of rows as most files are made.
  The groups read last are kept, so that reading in order reads each once.
  """

  unit = "row"

  def __init__(self, paths: Sequence[str], policy: Policy):
    self._group_ends: list[np.ndarray] = []  # rows up to the end of each group, per file
    self._load = _RowGroups(policy.options.text_field, policy.options.fields)
    super().__init__(paths, policy)

  def _open(self, path: str) -> int:
    metadata = self._load.metadata(path)
    rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    self._group_ends.append(np.cumsum(rows, dtype=np.int64))
    return metadata.num_rows

  def _read(self, file: int, number: int) -> Document:
    ends = self._group_ends[file]
    group = int(np.searchsorted(ends, number, side="right"))
    row = number - int(ends[group])  # from the end of the group
    texts, table, names = self._load(self._files[file], group)
    text = texts[row].as_py()
    if text is None:
      raise BadInputError("no text", "the value is null")
    return Document(text, row=columns.take_row(table, row, names) if names else None)


class _RowGroups:
  """Loads the text of row groups of Parquet files as Arrow arrays of bytes.

  With each comes a table of the columns in which fields are, and the names of all columns,
  none where no fields are asked for.
  """

  def __init__(self, column: str, fields: tuple[str, ...]):
    self._column, self._fields = column, fields
    self._cached = functools.lru_cache(maxsize=2)(self._read)

  def __reduce__(self) -> tuple[Any, ...]:
    return _RowGroups, (self._column, self._fields)

  def __call__(self, path: str, group: int) -> Any:
    return self._cached(path, group)

  def metadata(self, path: str) -> Any:
    """Looks at a file's end; its column must hold text."""
    with _open_parquet(path) as parquet:
      columns.check(parquet.schema_arrow, self._column)
      return parquet.metadata

  def _read(self, path: str, group: int) -> Any:
    with _open_parquet(path) as parquet:
      schema = parquet.schema_arrow
      top, others = columns.check(schema, self._column), columns.tops(schema, self._fields)
      table = parquet.read_row_group(group, columns=[self._column, *others])
    texts = columns.take(table.column(top), self._column, top)
    return texts, table.select(others), schema.names if self._fields else []


def _open_parquet(path: str) -> Any:
  import pyarrow.parquet as pq

  return pq.ParquetFile(files.open_file(path), pre_buffer=True)
