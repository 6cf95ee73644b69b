"""The document in a line of JSON."""

import dataclasses
import functools
import json
from typing import Any

from blt_jax.data.reading import answers, fields
from blt_jax.data.reading.documents import BadInputError, Document, SourceOptions
from blt_jax.storage import unique_names

_DECODER = json.JSONDecoder(object_pairs_hook=unique_names.mark)


def parse_line(line: bytes, options: SourceOptions) -> Document | None:
  """Takes the text out of a line, and its row where fields of it are asked for.

  Bytes that are not UTF-8 stay what they are, and so do halves of surrogate pairs written
  as escapes, in the three bytes that UTF-8 would have for them: both make documents that
  are not valid UTF-8, to be kept or dropped like all such.

  Args:
    line: the line, with or without its end.
    options: its `text_field` says where the text is, or its template what it is made of.

  Returns:
    The document, in UTF-8; None for a blank line.

  Raises:
    BadInputError: no JSON, no such field, or no string in it; or as `answers.to_document`.
  """
  if not line or line.isspace():
    return None
  try:
    content, errors = line.decode(), "surrogatepass"
  except UnicodeDecodeError:
    content, errors = line.decode(errors="surrogateescape"), "surrogateescape"
  try:
    record = _DECODER.decode(content)
  except (ValueError, RecursionError) as error:
    raise BadInputError("not a line of JSON", str(error)) from error
  if not isinstance(record, dict):
    hint = "; name the file .json if it is one array" if isinstance(record, list) else ""
    raise BadInputError("not a JSON object", f"it is of type {type(record).__name__}{hint}")
  encode = functools.partial(_encode, errors=errors)
  if options.template is None:
    document = Document(encode(_take_text(record, options.text_field)))
  else:
    document = answers.to_document(record, options.template, encode)
  return dataclasses.replace(document, row=record) if options.fields else document


def _take_text(record: dict[str, Any], field: str) -> str:
  try:
    text = fields.look_up(record, field)
  except KeyError:
    names = ", ".join(map(repr, list(record)[:10])) or "none"
    details = f"its fields: {names}; text_field says which"
    raise BadInputError(f"no field {field!r}", details) from None
  if text is unique_names.SEVERAL:
    raise BadInputError(f"several fields {field!r}", "which one is meant?")
  if not isinstance(text, str):
    raise BadInputError(f"no string in field {field!r}", f"but {type(text).__name__}")
  return text


def _encode(text: str, errors: str) -> bytes:
  try:
    return text.encode()
  except UnicodeEncodeError:
    return _encode_surrogates(text, errors)


def _encode_surrogates(text: str, errors: str) -> bytes:
  try:
    return text.encode(errors=errors)
  except UnicodeEncodeError as error:  # raw bytes and escapes in one line
    raise BadInputError("invalid UTF-8 and half a surrogate pair", str(error)) from error
