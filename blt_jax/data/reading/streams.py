"""Documents that can be read in one direction only."""

import contextlib
import functools
import io
import itertools
from collections.abc import Sequence
from typing import Any

import grain

from blt_jax.data.reading.documents import BadInputError, Document, Policy, SourceOptions
from blt_jax.data.reading.records import FORMATS, BoundedFile, Format, Records
from blt_jax.storage import files

_SAMPLE = 1 << 22  # bytes


class RecordStream(grain.IterDataset):
  """Documents of JSONL, JSON and CSV files one after another, compressed ones among them.

  Files are opened by the iterator, so the dataset can be sent to other processes. Lines may
  end in CRLF; blank ones are ignored.

  Attributes:
    paths: of the files.
  """

  def __init__(self, paths: Sequence[str], policy: Policy):
    """Takes the files in their order, and what happens to bad input."""
    super().__init__()
    self.paths = tuple(paths)
    self._policy = policy

  @functools.cached_property
  def size(self) -> int | None:
    """About how many bytes of text there are, judging by the start of the first file."""
    kind, options = _format(self.paths[0]), self._policy.options
    text = end = 0
    try:
      start, stored = files.read_start(self.paths[0], _SAMPLE)
      last = len(start) - (len(start) == _SAMPLE)  # a sample ends within a record
      with contextlib.suppress(BadInputError):
        records = kind.split(BoundedFile(io.BytesIO(start), len(start)), 0)
        for record, place in itertools.takewhile(lambda r: r[1] <= last, records):
          text, end = text + _length(kind, record, options), place
    except Exception:  # each library has exceptions of its own; whoever reads on reports it
      return None
    return int(sum(files.sizes_of(self.paths)) * text / stored * len(start) / max(end, 1))

  def __iter__(self) -> grain.DatasetIterator[Document]:
    """Starts from the first record of the first file."""
    return _RecordIterator(self.paths, self._policy)


def _format(path: str) -> Format:
  return FORMATS[files.format_of(path)]


def _length(kind: Format, record: Any, options: SourceOptions) -> int:
  try:
    document = kind.parse(record, options)
    return len(document.text) if document else 0
  except (BadInputError, TypeError):
    return 0


class _RecordIterator(grain.DatasetIterator[Document]):
  """Its state is a place: the file, the records done in it, and their bytes unpacked.

  To restore it is to unpack the file up to there.
  """

  def __init__(self, paths: Sequence[str], policy: Policy):
    super().__init__()
    self._paths = paths
    self._policy = policy
    self._opened: Any = None
    self._records: Records | None = None
    self._move(0, 0, 0)

  def __next__(self) -> Document:
    while self._file < len(self._paths):
      record = self._next_record()
      if record is None:
        self._move(self._file + 1, 0, 0)
      elif (document := self._parse(record)) is not None:
        return document
    raise StopIteration

  def get_state(self) -> dict[str, Any]:
    return {"file": self._file, "line": self._line, "offset": self._offset}

  def set_state(self, state: dict[str, Any]) -> None:
    self._move(state["file"], state["line"], state["offset"])

  def close(self) -> None:
    """Closes the open file."""
    super().close()
    self._move(self._file, self._line, self._offset)

  def _move(self, file: int, line: int, offset: int) -> None:
    if self._opened is not None:
      self._opened.close()
    self._opened = self._records = None
    self._file, self._line, self._offset = file, line, offset

  def _next_record(self) -> Any:
    """The next record; None at the file's end, or where the rest of it is skipped."""
    path = self._paths[self._file]
    try:
      if self._records is None:
        self._opened = files.open_file(path)
        bounded = BoundedFile(self._opened, files.sizes_of([path])[0])
        self._records = _format(path).split(bounded, self._offset)
      record, self._offset = next(self._records, (None, self._offset))
    except Exception as error:  # each library has exceptions of its own for a broken file
      where = f"{path}, after {_format(path).unit} {self._line}" if self._line else path
      if not isinstance(error, BadInputError):
        error = BadInputError("cannot be read", str(error))
      self._policy.reject(error, where)
      return None
    self._line += 1
    return record

  def _parse(self, record: Any) -> Document | None:
    kind = _format(self._paths[self._file])
    where = f"{self._paths[self._file]}, {kind.unit} {self._line}"
    try:
      if isinstance(record, BadInputError):
        raise record
      document = kind.parse(record, self._policy.options)
    except BadInputError as error:
      self._policy.reject(error, where)
      return None
    return None if document is None else self._policy.admit(document, where)
