"""What a file is, by what it begins with, where its name does not say."""

import codecs
import json

from blt_jax.data.reading.documents import BadInputError

_TEXT = "unpack it, or name it .jsonl.gz, .csv.gz and so on (also .zst, .xz) if it is one"
_NAME = "name it {}, and it is read"
_CONVERT = "take the text out of it"

# What files begin with -> what they are, and the way out.
_FORMATS: dict[bytes, tuple[str, str]] = {
  b"\x1f\x8b": ("compressed text", _TEXT),
  b"\x28\xb5\x2f\xfd": ("compressed text", _TEXT),
  b"\xfd7zXZ\0": ("compressed text", _TEXT),
  b"\x04\x22\x4d\x18": ("compressed text", _TEXT),  # lz4
  b"\x1f\x9d": ("compressed text", _TEXT),  # .Z
  b"BZh": ("compressed text", _TEXT),
  b"PK\3\4": ("compressed text, or a document in a ZIP file", _CONVERT),
  b"7z\xbc\xaf\x27\x1c": ("a 7z archive", _CONVERT),
  b"Rar!\x1a\7": ("a RAR archive", _CONVERT),
  b"PAR1": ("a Parquet file", _NAME.format(".parquet")),
  b"ARROW1\0\0": ("an Arrow file", _NAME.format(".arrow")),
  b"\xff\xff\xff\xff": ("a stream of Arrow", _NAME.format(".arrow")),
  b"%PDF-": ("a PDF document", _CONVERT),
  b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": ("an old document of an office program", _CONVERT),
  b"{\\rtf": ("an RTF document", _CONVERT),
  b"SQLite format 3\0": ("an SQLite database", _CONVERT),
  b"\x89HDF\r\n\x1a\n": ("an HDF5 file", _CONVERT),
  b"\x93NUMPY": ("a NumPy array", _CONVERT),
  b"Obj\1": ("an Avro file", _CONVERT),
  b"ORC": ("an ORC file", _CONVERT),
  b"\x80\4": ("a pickle of Python", _CONVERT),
  b"\x80\5": ("a pickle of Python", _CONVERT),
}
_WORDS = b"ORC", b"BZh"  # text may begin so, as "ORCHIDS" does
_TAR = 257, b"ustar"


def check_text(start: bytes) -> None:
  """Raises BadInputError if a file, by its start, holds documents in another format."""
  for magic, (what, way_out) in _FORMATS.items():
    if start.startswith(magic) and not (magic in _WORDS and _is_plain(start)):
      raise BadInputError(what, way_out)
  if start[_TAR[0] :].startswith(_TAR[1]):
    raise BadInputError("a tar archive", _CONVERT)


def _is_plain(start: bytes) -> bool:
  """Whether the start of a file is UTF-8 without NULs; its last character may be cut."""
  try:
    codecs.utf_8_decode(start, "strict", False)
  except UnicodeDecodeError:
    return False
  return b"\0" not in start


def seems_to_be_lines(start: bytes, field: str) -> bool:
  """Whether a file begins with a line of JSON that has the field of the text."""
  line = start.lstrip().split(b"\n", 1)[0]
  if not line.startswith(b"{"):
    return False
  try:
    record = json.loads(line)
  except (ValueError, RecursionError):
    return False
  return isinstance(record, dict) and field.split(".")[0] in record
