"""Files that are whole or not there."""

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any, TextIO

from etils import epath


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[TextIO]:
  """A text file that takes its name when all is written, so that none cut short looks whole.

  What is no file, such as /dev/stdout, is written to as it is; of a link, what it leads to.

  Raises:
    OSError: it cannot be written; before anything is, where that can be known.
  """
  whole = epath.Path(path)
  if whole.is_dir():
    raise IsADirectoryError(f"{whole} is a folder; give the name of a file.")
  if os.path.exists(path) and not os.path.isfile(path):
    with whole.open("w", encoding="utf-8") as file:
      yield file
    return
  if os.path.islink(path):
    whole = epath.Path(os.path.realpath(path))
  partial = whole.with_suffix(f".{os.getpid()}.partial")  # processes may share the folder
  try:
    with partial.open("w", encoding="utf-8") as file:
      yield file
    partial.replace(whole)
  except BaseException:
    partial.unlink(missing_ok=True)
    raise


def parse_json(text: str | bytes, path: str | os.PathLike) -> dict[str, Any]:
  """The fields of a JSON file that this project wrote.

  Raises:
    ValueError: somebody damaged it.
  """
  try:
    fields = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path} is damaged, it is no JSON: {error}.") from None
  if not isinstance(fields, dict):
    raise ValueError(f"{path} is damaged, it holds no JSON object.")
  return fields


def write_text(path: epath.Path, text: str) -> None:
  """Writes a whole text and a newline."""
  with writing(path) as file:
    file.write(text + "\n")
