"""How text files are encoded, by what they begin with."""

from typing import NamedTuple

from blt_jax.data.reading import contents
from blt_jax.data.reading.documents import BadInputError

_START = 4096  # bytes that tell


class Encoding(NamedTuple):
  """An encoding of text.

  Attributes:
    name: as Python has it.
    mark: the byte order mark, which is no part of the text.
    unit: bytes of the smallest characters.
  """

  name: str
  mark: bytes = b""
  unit: int = 1


UTF8 = Encoding("utf-8")
_MARKED = (  # the longer marks first: two of them begin like shorter ones
  Encoding("utf-32-le", b"\xff\xfe\0\0", 4),
  Encoding("utf-32-be", b"\0\0\xfe\xff", 4),
  Encoding("utf-16-le", b"\xff\xfe", 2),
  Encoding("utf-16-be", b"\xfe\xff", 2),
  Encoding("utf-8", b"\xef\xbb\xbf"),
)


def find(start: bytes) -> Encoding:
  """The encoding that the start of a file tells of, UTF-8 where it tells of none.

  Raises:
    BadInputError: it is UTF-16 or UTF-32 without a mark, as its NULs tell, or nothing
      but NULs.
  """
  for encoding in _MARKED:
    if start.startswith(encoding.mark):
      return encoding
  whole = len(start[:_START])
  start = start[:_START].rstrip(b"\0")  # a crash may leave them at the end of a log
  if whole > 3 and not start:
    raise BadInputError("nothing but NUL bytes", "no text begins so")
  if width := _width_without_mark(start):
    details = f"convert it: iconv -f UTF-{width}LE (or BE) -t UTF-8"
    raise BadInputError(f"UTF-{width} without a byte order mark", details)
  return UTF8


def _width_without_mark(start: bytes) -> int:
  """16 or 32 where NULs stand as in text of that width, else 0."""
  shares = [start[i::4].count(0) / max(len(start) // 4, 1) for i in range(4)]
  if len(start) >= 8 and min(shares[1:3]) > 0.9:  # the highest byte of all is next to them
    return 32
  even, odd = shares[0] + shares[2], shares[1] + shares[3]
  return 16 if len(start) >= 8 and max(even, odd) > 1 and min(even, odd) < 0.1 else 0


def mark_of_utf8(start: bytes) -> int:
  """The length of the byte order mark of a file that must be text in UTF-8.

  Raises:
    BadInputError: it is in another encoding, or of a format that is no text.
  """
  contents.check_text(start)
  if (encoding := find(start)).unit > 1:
    name = encoding.name.upper()
    raise BadInputError(f"text in {name}", f"convert it: iconv -f {name[:6]} -t UTF-8")
  return len(encoding.mark)


def decode(raw: bytes, encoding: Encoding) -> bytes:
  """Text as UTF-8; halves of surrogate pairs become what is not valid UTF-8.

  Raises:
    BadInputError: it ends within a character, or has numbers that are none.
  """
  if encoding.unit == 1:
    return raw
  try:
    return raw.decode(encoding.name, "surrogatepass").encode(errors="surrogatepass")
  except UnicodeDecodeError as error:
    raise BadInputError(f"not {encoding.name.upper()}", error.reason) from error


def piece_limit(limit: int, encoding: Encoding) -> int:
  """How many bytes of a file have at most `limit`, 6 or more, bytes of text in UTF-8."""
  most = limit * 2 // 3 if encoding.unit == 2 else limit
  return max(most - most % encoding.unit, 4)


def cut(window: bytes, limit: int, encoding: Encoding) -> int:
  """Where a piece of at most `limit` bytes ends: after a line, or before a character.

  Args:
    window: the file from the start of the piece, one unit more than `limit` at least where
      there is that much.
    limit: bytes; a multiple of the encoding's unit.
    encoding: of the file.
  """
  if len(window) <= limit:
    return len(window)
  if encoding.unit > 1:
    return _cut_wide(window, limit, encoding)
  newline = window.rfind(b"\n", 0, limit)
  if newline >= 0:
    return newline + 1
  starts = (end for end in range(limit, limit - 4, -1) if window[end] & 0xC0 != 0x80)
  return next(starts, limit)


def _cut_wide(window: bytes, limit: int, encoding: Encoding) -> int:
  unit, newline = encoding.unit, "\n".encode(encoding.name)
  found = window.rfind(newline, 0, limit)
  while found > 0 and found % unit:  # a line feed of two characters' halves
    found = window.rfind(newline, 0, found + len(newline) - 1)
  if found >= 0 and found % unit == 0:
    return found + unit
  high = window[limit + (0 if encoding.name.endswith("be") else 1)]
  is_low_half = unit == 2 and 0xDC <= high <= 0xDF
  return limit - unit if is_low_half and limit > unit else limit
