"""Documents in Arrow files, as Hugging Face `datasets` saves them."""

import bisect
import functools
import itertools
import threading
from collections.abc import Sequence
from typing import Any

from blt_jax.data.reading import columns
from blt_jax.data.reading.documents import BadInputError, Document, Policy, SourceOptions
from blt_jax.data.reading.readers import Reader
from blt_jax.storage import files

_MAPPED = 4096  # files that stay open
_UNPACKED, _FREE = 4, 1 << 26  # times its size a stream may take in memory, or bytes


class ArrowReader(Reader):
  """A column of Arrow files, streams and the random access format alike.

  They are mapped from disks, and read where they are needed; remote ones are copied, see
  `files.copy_here`.
  """

  unit = "row"

  def __init__(self, paths: Sequence[str], policy: Policy):
    self._load = _Batches(policy.options)
    super().__init__(paths, policy)

  def _open(self, path: str) -> int:
    return self._load.ends(path)[-1]

  def _read(self, file: int, number: int) -> Document:
    return columns.to_document(*self._load(self._files[file], number), self._policy.options)


class _Batches:
  """Gives values out of the record batches of files."""

  def __init__(self, options: SourceOptions):
    self._options = options
    self._open = functools.lru_cache(maxsize=_MAPPED)(self._map)
    self._texts = functools.lru_cache(maxsize=8)(self._take)

  def __reduce__(self) -> tuple[Any, ...]:
    return _Batches, (self._options,)

  def ends(self, path: str) -> list[int]:
    """Rows up to the end of each batch, [0] where there are none."""
    return self._open(path)[2]

  def __call__(self, path: str, number: int) -> tuple[bytes | None, dict[str, Any]]:
    """The text of a row, if rows have text, and those of its fields that are wanted."""
    ends = self.ends(path)
    batch = bisect.bisect_right(ends, number)
    texts, others = self._texts(path, batch)
    place = number - ends[batch]  # from the end of the batch
    is_row = self._options.fields or self._options.template
    row = columns.take_row(others, place, self._open(path)[3]) if is_row else {}
    return None if texts is None else texts[place].as_py(), row

  def _map(self, path: str) -> tuple[Any, str, list[int], list[str]]:
    """What gives the batches of a file, the column of text, `ends`, names of all columns."""
    import pyarrow as pa

    source = pa.memory_map(files.copy_here(path))
    is_stream = source.read(6) != b"ARROW1"
    source.seek(0)
    load = pa.ipc.open_stream if is_stream else pa.ipc.open_file
    schema = load(source).schema
    top, others = columns.find(schema, self._options)
    indices = [schema.get_field_index(name) for name in {top, *others} - {""}]
    source.seek(0)
    reader = load(source, options=pa.ipc.IpcReadOptions(included_fields=indices))
    batches = _read_all(reader, source.size()) if is_stream else _Random(reader)
    ends = list(itertools.accumulate(batch.num_rows for batch in batches))
    return batches, top, ends or [0], schema.names

  def _take(self, path: str, batch: int) -> tuple[Any, Any]:
    batches, top, _, _ = self._open(path)
    others = columns.find(batches[batch].schema, self._options)[1]
    field = self._options.text_field
    texts = columns.take(batches[batch].column(top), field, top) if top else None
    return texts, batches[batch].select(others)


class _Random(Sequence):
  """The batches of a file of the random access format, read anew each time."""

  def __init__(self, reader: Any):
    self._reader = reader
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return self._reader.num_record_batches

  def __getitem__(self, index):
    if index >= len(self):
      raise IndexError(index)
    with self._lock:
      return self._reader.get_batch(index)


def _read_all(reader: Any, size: int) -> list[Any]:
  """The batches of a stream, which lie in the mapped file where they are not compressed."""
  batches, total = [], 0
  for batch in reader:
    batches.append(batch)
    total += batch.nbytes
    if total > _UNPACKED * size + _FREE:
      raise BadInputError("a large compressed stream of Arrow", "write it as .parquet")
  return batches
