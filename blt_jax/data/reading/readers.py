"""Random access to documents in files: one class for each format."""

import abc
from collections.abc import Sequence

import grain
import numpy as np

from blt_jax.data.reading import json_lines
from blt_jax.data.reading.documents import BadInputError, Document, Policy, is_utf8
from blt_jax.storage import files


class Reader(grain.MapDataset[Document]):
  """Documents of several files in one sequence.

  An element is None where nothing is to be read: a blank line, or skipped input. Reading
  is safe from several threads, and a reader can be sent to other processes. (It is a
  dataset and not a data source of one, since Grain's dataset of a source keeps accounts
  that take as long as reading a document.)
  """

  unit = "document"  # what the documents of a file are called in messages

  def __init__(self, paths: Sequence[str], policy: Policy):
    """Looks into all files.

    Args:
      paths: the files, all of this class's format.
      policy: what happens to bad input.

    Raises:
      ValueError: a file cannot be read, and `on_error` is "raise".
    """
    super().__init__()
    self._policy = policy
    self._files: list[str] = []
    counts: list[int] = []
    for path in paths:
      try:
        count = self._open(path)
      except BadInputError as error:
        policy.reject(error, path)
      except (OSError, RuntimeError, ValueError) as error:
        policy.reject(BadInputError("cannot be read", str(error)), path)
      else:
        self._files.append(path)
        counts.append(count)
    self._ends = np.cumsum(counts, dtype=np.int64)

  @property
  def file_ids(self) -> np.ndarray:
    """The number of the file that each document is from, int64 [len(self)]."""
    return np.repeat(np.arange(len(self._ends)), np.diff(self._ends, prepend=0))

  def __len__(self) -> int:
    return int(self._ends[-1]) if len(self._ends) else 0

  def __getitem__(self, index):
    if isinstance(index, slice):
      return self.slice(index)
    index %= len(self)  # later epochs
    file = int(np.searchsorted(self._ends, index, side="right"))
    number = index - (int(self._ends[file - 1]) if file else 0)
    where = f"{self._files[file]}, {self.unit} {number + 1}"
    document = None
    try:
      document = self._read(file, number)
    except BadInputError as error:
      self._policy.reject(error, where)
    except (OSError, RuntimeError, ValueError) as error:
      self._policy.reject(BadInputError("cannot be read", str(error)), where)
    return None if document is None else self._policy.admit(document, where)

  @abc.abstractmethod
  def _open(self, path: str) -> int:
    """Looks into the next file; returns how many documents it has."""

  @abc.abstractmethod
  def _read(self, file: int, number: int) -> Document | None:
    """Document `number` of the file that was opened as number `file`."""


class _RangeReader(Reader):
  """Documents that are consecutive parts of their files."""

  def __init__(self, paths: Sequence[str], policy: Policy):
    self._range = files.RangeReader()
    self._bounds: list[np.ndarray] = []  # of each file, one more than it has documents
    super().__init__(paths, policy)

  def _open(self, path: str) -> int:
    bounds = self._scan(path)
    self._bounds.append(bounds)
    return len(bounds) - 1

  def _read(self, file: int, number: int) -> Document | None:
    start, stop = self._bounds[file][number : number + 2].tolist()
    return self._parse(self._range(self._files[file], start, stop))

  @abc.abstractmethod
  def _scan(self, path: str) -> np.ndarray:
    """Where the documents of a file start, and where the last one ends: int64 [n + 1]."""

  @abc.abstractmethod
  def _parse(self, raw: bytes) -> Document | None: ...


# What files of gzip, zstd, xz, bzip2 and zip begin with.
_COMPRESSED = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\0", b"BZh", b"PK\3\4"


class TextReader(_RangeReader):
  """Plain text files, the long ones in pieces.

  A byte order mark is no part of the text. Files of nothing but blanks have no documents,
  nor do, among others, those that are not text: not UTF-8 and with a NUL byte near the start.
  """

  unit = "piece"

  def __init__(self, paths: Sequence[str], policy: Policy):
    self._is_alone = len(paths) == 1
    super().__init__(paths, policy)

  def _scan(self, path: str) -> np.ndarray:
    limit = self._policy.options.max_document_bytes
    with files.open_file(path) as file:
      window = file.read(limit + 1)
      if self._is_alone and window.startswith(_COMPRESSED):
        raise BadInputError(
          "compressed text", "unpack it, or name JSONL .jsonl.gz, .zst or .xz"
        )
      is_binary = b"\0" in window and not is_utf8(window[: _cut(window, limit)])
      if is_binary and not self._is_alone:
        self._policy.skipped.add("not UTF-8 text", path)
        return np.zeros(1, np.int64)
      bounds, is_blank = [len(json_lines.BOM) * window.startswith(json_lines.BOM)], True
      window = window[bounds[0] :]
      while window := window + file.read(limit + 1 - len(window)):
        is_blank = is_blank and not window.strip()
        bounds.append(bounds[-1] + _cut(window, limit))
        window = window[bounds[-1] - bounds[-2] :]
    return np.array([0] if is_blank else bounds, np.int64)

  def _parse(self, raw: bytes) -> Document:
    return Document(raw)


def _cut(window: bytes, limit: int) -> int:
  """Where a piece of at most `limit` bytes ends: after a line, or before a character."""
  if len(window) <= limit:
    return len(window)
  newline = window.rfind(b"\n", 0, limit)
  if newline >= 0:
    return newline + 1
  starts = (end for end in range(limit, limit - 4, -1) if window[end] & 0xC0 != 0x80)
  return next(starts, limit)


class JsonLinesReader(_RangeReader):
  """JSONL files that are not compressed. Lines may end in CRLF; blank ones are ignored."""

  unit = "line"

  def _scan(self, path: str) -> np.ndarray:
    with files.open_file(path) as file:
      offset = len(json_lines.BOM) if file.read(3) == json_lines.BOM else 0
      file.seek(offset)
      bounds = [np.array([offset])]
      while block := file.read(2**24):
        newlines = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
        bounds.append(newlines + offset + 1)
        offset += len(block)
    ends = np.concatenate(bounds)
    return ends if ends[-1] == offset else np.append(ends, offset)

  def _parse(self, raw: bytes) -> Document | None:
    text = json_lines.parse_line(raw, self._policy.options.text_field)
    return None if text is None else Document(text)


class ArrayRecordReader(Reader):
  """ArrayRecord files; remote ones are copied, see `files.copy_here`."""

  unit = "record"

  def __init__(self, paths: Sequence[str], policy: Policy):
    self._sources: list[grain.sources.ArrayRecordDataSource] = []
    super().__init__(paths, policy)

  def _open(self, path: str) -> int:
    source = grain.sources.ArrayRecordDataSource([files.copy_here(path)])
    self._sources.append(source)
    return len(source)

  def _read(self, file: int, number: int) -> Document:
    return parse_record(self._sources[file][number])


def parse_record(record: bytes) -> Document:
  """The document in a record of an ArrayRecord file: the record is its text."""
  return Document(record)
