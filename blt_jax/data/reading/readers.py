"""Random access to documents in files: one class for each format."""

import abc
from collections.abc import Sequence

import grain
import numpy as np
from absl import logging

from blt_jax.data.reading import contents, encodings, json_lines
from blt_jax.data.reading.documents import BadInputError, Document, Drought, Policy, is_utf8
from blt_jax.data.reading.records import LONGEST
from blt_jax.storage import files

_START = 1 << 16  # bytes that tell what is in a file


class Reader(grain.MapDataset[Document]):
  """Documents of several files in one sequence.

  An element is None where nothing is to be read: a blank line, or skipped input. Reading
  is safe from several threads, and a reader can be sent to other processes. (It is a
  dataset and not a data source of one, since Grain's dataset of a source keeps accounts
  that take as long as reading a document.)

  Attributes:
    paths: of the files.
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
    self.paths = tuple(paths)
    self._policy = policy
    self._drought = Drought(self.paths)
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
    if document is not None:
      document = self._policy.admit(document, where)
    return self._drought.check(document, len(self))

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

  def _range_of(self, file: int, number: int) -> bytes:
    start, stop = self._bounds[file][number : number + 2].tolist()
    if stop - start > LONGEST:
      raise BadInputError("a line of more than 256 MB", "is it text?")
    return self._range(self._files[file], start, stop)


class TextReader(_RangeReader):
  """Plain text files, the long ones in pieces.

  A byte order mark is no part of the text, and UTF-16 and UTF-32 become UTF-8. Files of
  nothing but blanks have no documents, nor do, among others, those that are not text: not
  UTF-8 and with a NUL byte near the start.
  """

  unit = "piece"

  def __init__(self, paths: Sequence[str], policy: Policy):
    self._is_alone = len(paths) == 1
    self._encodings: list[encodings.Encoding] = []
    super().__init__(paths, policy)

  def _open(self, path: str) -> int:
    with files.open_file(path) as file:
      start = file.read(_START)
    if not self._holds_text(start, path):
      start = b""
    if contents.seems_to_be_lines(start, self._policy.options.text_field):
      logging.warning("%s is read as plain text, and seems to be JSONL: name it so.", path)
    encoding = encodings.find(start)
    bounds = self._scan_as(path, encoding) if start else np.zeros(1, np.int64)
    self._encodings.append(encoding)
    self._bounds.append(bounds)
    return len(bounds) - 1

  def _holds_text(self, start: bytes, path: str) -> bool:
    """False, and said, for another format in a folder; a file alone is meant: an error."""
    try:
      contents.check_text(start)
    except BadInputError as error:
      if self._is_alone:
        raise
      self._policy.skipped.add(error.reason, path)
      return False
    return True

  def _scan_as(self, path: str, encoding: encodings.Encoding) -> np.ndarray:
    limit = encodings.piece_limit(self._policy.options.max_document_bytes, encoding)
    most = limit + encoding.unit
    with files.open_file(path) as file:
      window = file.read(most)
      is_wide = encoding.unit > 1
      piece = window[: encodings.cut(window, limit, encoding)]
      if not is_wide and b"\0" in window and not is_utf8(piece):
        if not self._is_alone:
          self._policy.skipped.add("not UTF-8 text", path)
          return np.zeros(1, np.int64)
        logging.warning("%s is not UTF-8 text; its bytes are read as they are.", path)
      bounds, is_blank = [len(encoding.mark)], True
      window = window[bounds[0] :]
      while window := window + file.read(most - len(window)):
        is_blank = is_blank and not window.strip(b"\0 \t\r\n\v\f" if is_wide else None)
        bounds.append(bounds[-1] + encodings.cut(window, limit, encoding))
        window = window[bounds[-1] - bounds[-2] :]
    return np.array([0] if is_blank else bounds, np.int64)

  def _read(self, file: int, number: int) -> Document:
    return Document(encodings.decode(self._range_of(file, number), self._encodings[file]))


class JsonLinesReader(_RangeReader):
  """JSONL files that are not compressed. Lines may end in CRLF; blank ones are ignored."""

  unit = "line"

  def _open(self, path: str) -> int:
    with files.open_file(path) as file:
      offset = encodings.mark_of_utf8(file.read(_START))
      file.seek(offset)
      bounds = [np.array([offset])]
      while block := file.read(2**24):
        newlines = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
        bounds.append(newlines + offset + 1)
        offset += len(block)
    ends = np.concatenate(bounds)
    self._bounds.append(ends if ends[-1] == offset else np.append(ends, offset))
    return len(self._bounds[-1]) - 1

  def _read(self, file: int, number: int) -> Document | None:
    raw = self._range_of(file, number)
    return json_lines.parse_line(raw, self._policy.options)


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
