"""Documents in Parquet files."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from blt_jax.data.reading import columns
from blt_jax.data.reading.documents import Document, Policy, SourceOptions
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
    self._load = _RowGroups(policy.options)
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
    text = None if texts is None else texts[row].as_py()
    values = columns.take_row(table, row, names) if names else {}
    return columns.to_document(text, values, self._policy.options)


class _RowGroups:
  """Loads the text of row groups of Parquet files as Arrow arrays of bytes, if rows have text.

  With each comes a table of the other columns that are wanted, and the names of all columns,
  none where none is wanted.
  """

  def __init__(self, options: SourceOptions):
    self._options = options
    self._cached = functools.lru_cache(maxsize=2)(self._read)

  def __reduce__(self) -> tuple[Any, ...]:
    return _RowGroups, (self._options,)

  def __call__(self, path: str, group: int) -> Any:
    return self._cached(path, group)

  def metadata(self, path: str) -> Any:
    """Looks at a file's end; its columns must hold text."""
    with _open_parquet(path) as parquet:
      columns.find(parquet.schema_arrow, self._options)
      return parquet.metadata

  def _read(self, path: str, group: int) -> Any:
    with _open_parquet(path) as parquet:
      schema = parquet.schema_arrow
      (top, others), field = columns.find(schema, self._options), self._options.text_field
      table = parquet.read_row_group(group, columns=[field, *others] if top else others)
    texts = columns.take(table.column(top), field, top) if top else None
    is_row = self._options.fields or self._options.template
    return texts, table.select(others), schema.names if is_row else []


def _open_parquet(path: str) -> Any:
  import pyarrow.parquet as pq

  return pq.ParquetFile(files.open_file(path), pre_buffer=True)
