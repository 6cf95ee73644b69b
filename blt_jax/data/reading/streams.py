"""Documents that can be read in one direction only."""

import functools
from collections.abc import Sequence
from typing import Any, BinaryIO

import grain

from blt_jax.data.reading import json_lines
from blt_jax.data.reading.documents import BadInputError, Document, Policy
from blt_jax.storage import files

_SAMPLE = 1 << 22  # bytes


class JsonLinesStream(grain.IterDataset):
  """Documents of JSONL files one after another, compressed ones among them.

  Files are opened by the iterator, so the dataset can be sent to other processes. Lines may
  end in CRLF; blank ones are ignored.
  """

  def __init__(self, paths: Sequence[str], policy: Policy):
    """Takes the files in their order, and what happens to bad input."""
    super().__init__()
    self._paths = tuple(paths)
    self._policy = policy

  @functools.cached_property
  def size(self) -> int | None:
    """About how many bytes of text there are, judging by the start of the first file."""
    try:
      lines, share = files.read_start(self._paths[0], _SAMPLE)
    except Exception:  # each library has exceptions of its own; whoever reads on reports it
      return None
    texts = map(self._sample, lines.splitlines())
    return int(sum(files.sizes_of(self._paths)) * sum(map(len, texts)) / share)

  def _sample(self, line: bytes) -> bytes:
    try:
      return json_lines.parse_line(line, self._policy.options.text_field) or b""
    except BadInputError:
      return b""

  def __iter__(self) -> grain.DatasetIterator[Document]:
    """Starts from the first line of the first file."""
    return _JsonLinesIterator(self._paths, self._policy)


class _JsonLinesIterator(grain.DatasetIterator[Document]):
  """Its state is a place: the file, the lines done in it, and their bytes uncompressed.

  To restore it is to uncompress the file up to there.
  """

  def __init__(self, paths: Sequence[str], policy: Policy):
    super().__init__()
    self._paths = paths
    self._policy = policy
    self._handle: BinaryIO | None = None
    self._move(0, 0, 0)

  def __next__(self) -> Document:
    while self._file < len(self._paths):
      line = self._next_line()
      where = f"{self._paths[self._file]}, line {self._line}"
      if not line:
        self._move(self._file + 1, 0, 0)
      elif (document := self._parse(line, where)) is not None:
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
    if self._handle is not None:
      self._handle.close()
    self._handle = None
    self._file, self._line, self._offset = file, line, offset

  def _next_line(self) -> bytes:
    """The next line; nothing at the file's end, or where the rest of it is skipped."""
    try:
      if self._handle is None:
        self._handle = files.open_file(self._paths[self._file])
        self._handle.seek(self._offset)
      line = self._handle.readline()
    except Exception as error:  # each library has exceptions of its own for a broken file
      where = f"{self._paths[self._file]}, after line {self._line}"
      self._policy.reject(BadInputError("cannot be read", str(error)), where)
      return b""
    self._offset += len(line)
    self._line += 1
    return line

  def _parse(self, line: bytes, where: str) -> Document | None:
    if self._line == 1:
      line = line.removeprefix(json_lines.BOM)
    try:
      text = json_lines.parse_line(line, self._policy.options.text_field)
    except BadInputError as error:
      self._policy.reject(error, where)
      return None
    return None if text is None else self._policy.admit(Document(text), where)
