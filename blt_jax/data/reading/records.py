"""How files fall into records: lines of JSON, elements of JSON arrays, rows of CSV.

A split takes a file and the place of a record, bytes from the start, and gives records and
the places after them, so that reading goes on at any of them. A record that cannot be taken
apart is a `BadInputError`, and the next one follows.
"""

import codecs
import csv
import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

from blt_jax.data.reading import answers, encodings, json_lines
from blt_jax.data.reading.documents import BadInputError, Document, SourceOptions

LONGEST = 1 << 28  # bytes of a record: one more is no text, or has lost its end
_BLOCK, _START = 1 << 20, 64  # bytes read at once; that tell of encoding and kind
_LONGEST_FIELD = 1 << 26  # bytes between quotes: more, and one of them is missing
_BLANKS = re.compile(r"[ \t\r\n]*")
_UNPACKED, _FREE = 200, 1 << 26  # times its size a file may unpack to, or so many bytes

Records = Iterator[tuple[Any, int]]


class Format(NamedTuple):
  """How files of a format are read.

  Attributes:
    unit: what a record is called in messages.
    split: the file's records from a place on.
    parse: the document of a record; None where there is none.
  """

  unit: str
  split: Callable[["BoundedFile", int], Records]
  parse: Callable[[Any, SourceOptions], Document | None]


class BoundedFile:
  """A file whose content is unpacked while it is read, within bounds."""

  def __init__(self, file: BinaryIO, stored: int):
    """Takes an open file and how many bytes it stores."""
    self._file, self._most = file, max(_UNPACKED * stored, _FREE)
    self.offset = 0

  def start(self, offset: int) -> None:
    """Goes to a place; to that of the first record, after a byte order mark, from 0.

    Raises:
      BadInputError: the text is not in UTF-8.
    """
    if not offset:
      self._file.seek(0)
      offset = encodings.mark_of_utf8(self._file.read(_START))
    self._file.seek(offset)
    self.offset = offset

  def read(self, size: int) -> bytes:
    """The next bytes; fewer at the end."""
    return self._count(self._file.read(size))

  def readline(self) -> bytes:
    """The next line with its end; empty at the end."""
    most = min(LONGEST, self._most - self.offset) + 1
    line = self._count(self._file.readline(most))
    if len(line) > LONGEST:
      raise BadInputError("a line of more than 256 MB", "is it text?")
    return line

  def _count(self, content: bytes) -> bytes:
    self.offset += len(content)
    if self.offset > self._most:
      raise BadInputError(f"unpacks to more than {_UNPACKED} times its size", "is it text?")
    return content


def _split_lines(file: BoundedFile, offset: int) -> Records:
  file.start(offset)
  while line := file.readline():
    yield line, file.offset


# --- CSV


class _Lines:
  """The lines of a file as text, bytes that are no UTF-8 escaped; and the place after them."""

  def __init__(self, file: BoundedFile, offset: int):
    self._file = file
    self.move(offset)

  def move(self, offset: int) -> None:
    """Goes to a place."""
    self._file.start(offset)
    self.offset = self._file.offset
    self._waiting = self._read()

  def __iter__(self) -> Iterator[str]:
    return self

  def __next__(self) -> str:
    line = next(self._waiting)
    self.offset += len(line)
    return line.decode(errors="surrogateescape")

  def _read(self) -> Iterator[bytes]:
    rest = b""
    while block := self._file.read(_BLOCK):
      lines = (rest + block).split(b"\n")
      rest = lines.pop()
      if len(rest) > LONGEST:
        raise BadInputError("a line of more than 256 MB", "is it text?")
      yield from (line + b"\n" for line in lines)
    if rest:
      yield rest


def _split_rows(delimiter: str) -> Callable[[BoundedFile, int], Records]:
  def split(file: BoundedFile, offset: int) -> Records:
    csv.field_size_limit(_LONGEST_FIELD)
    lines = _Lines(file, 0)
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
      header = next(rows, [])
    except csv.Error as error:
      raise BadInputError("not CSV", str(error)) from error
    if offset:
      lines.move(offset)
    while True:
      record: Any
      try:
        row = next(rows, None)
      except csv.Error as error:
        record = BadInputError("not a row of CSV", str(error))
      else:
        if row is None:
          return
        record = header, row
      yield record, lines.offset

  return split


def _parse_row(record: tuple[list[str], list[str]], options: SourceOptions) -> Document | None:
  header, row = record
  if not row:  # a blank line
    return None
  for field in answers.PAIR if options.template else (options.text_field,):
    _check_column(header, field, options)
  if row == header:
    raise BadInputError("the header once more", "were files joined? Give each its own")
  if len(row) != len(header):
    details = f"{len(row)} instead of the {len(header)} of the header"
    raise BadInputError("another number of columns", details)
  fields, encode = dict(zip(header, row, strict=True)), _encode_escaped
  if options.template is None:
    document = Document(encode(fields[options.text_field]))
  else:
    document = answers.to_document(fields, options.template, encode)
  return dataclasses.replace(document, row=fields) if options.fields else document


def _check_column(header: list[str], field: str, options: SourceOptions) -> None:
  if (count := header.count(field)) != 1:
    names = ", ".join(map(repr, header[:10])) or "none"
    hint = "" if options.template else "; text_field says which"
    what = "no column" if not count else f"{count} columns"
    raise BadInputError(f"{what} {field!r}", f"its columns: {names}{hint}")


def _encode_escaped(text: str) -> bytes:
  return text.encode(errors="surrogateescape")


# --- JSON


def _split_json(file: BoundedFile, offset: int) -> Records:
  """Lines, or the elements of an array, as the first character says."""
  file.start(0)
  while (block := file.read(_START)).isspace():
    pass
  block = block.lstrip()
  if block.startswith((b"{\n", b"{\r")):
    details = "give lines of JSON, or an array of objects"
    raise BadInputError("one JSON object over several lines", details)
  split = _split_array if block.startswith(b"[") else _split_lines
  yield from split(file, offset)


def _split_array(file: BoundedFile, offset: int) -> Records:
  """The elements, as bytes of JSON."""
  text = _JsonText(file, offset)
  mark = text.take("," if offset else "[", "]" if offset else "")
  while mark != "]":
    if mark == "[" and text.peek() == "]":
      mark = text.take("]")
      break
    element = text.take_value()
    yield element, text.offset
    mark = text.take(",", "]")
  if text.peek():
    raise BadInputError("not a JSON array", f"{text.peek()!r} after its end")


class _JsonText:
  """The text of a JSON file from a place on, not more of it than is needed."""

  def __init__(self, file: BoundedFile, offset: int):
    file.start(offset)
    self._file, self.offset = file, file.offset
    self._text, self._next = "", 0  # where in the text the next character is
    self._tail = b""  # of a character that the last block cut
    self._decoder = json.JSONDecoder()

  def peek(self) -> str:
    """The next character that is no blank; nothing at the end."""
    while True:
      end = _BLANKS.match(self._text, self._next).end()  # type: ignore[union-attr]
      self._next, self.offset = end, self.offset + end - self._next
      if end < len(self._text) or not self._fill():
        return self._text[end : end + 1]

  def take(self, *wanted: str) -> str:
    """Takes one of several characters, blanks before it aside."""
    if (mark := self.peek()) not in filter(None, wanted):
      found = repr(mark) if mark else "its end"
      raise BadInputError("not a JSON array", f"{found} at byte {self.offset}")
    self._next, self.offset = self._next + 1, self.offset + 1
    return mark

  def take_value(self) -> bytes:
    """Takes a whole value."""
    self.peek()
    while True:
      try:
        _, end = self._decoder.raw_decode(self._text, self._next)
        if end < len(self._text) or not self._fill():  # a number may go on
          break
      except RecursionError as error:
        raise BadInputError("not a JSON array", str(error)) from error
      except json.JSONDecodeError as error:
        is_cut = error.pos > len(self._text) - 16 or error.msg.startswith("Unterminated")
        if not is_cut or not self._fill():
          where = f"{error.msg} in the element at byte {self.offset}"
          raise BadInputError("not a JSON array", where) from error
    value = self._text[self._next : end].encode(errors="surrogateescape")
    self._next, self.offset = end, self.offset + len(value)
    return value

  def _fill(self) -> bool:
    """Reads as much again; False at the end."""
    rest = self._text[self._next :]
    if len(rest) > LONGEST:
      raise BadInputError("an element of more than 256 MB", "is it text?")
    block = self._file.read(max(_BLOCK, len(rest)))
    more, size = codecs.utf_8_decode(self._tail + block, "surrogateescape", not block)
    self._tail = (self._tail + block)[size:]
    self._text, self._next = rest + more, 0
    return bool(more or block)


FORMATS = {
  "jsonl": Format("line", _split_lines, json_lines.parse_line),
  "json": Format("record", _split_json, json_lines.parse_line),
  "csv": Format("row", _split_rows(","), _parse_row),
  "tsv": Format("row", _split_rows("\t"), _parse_row),
}
