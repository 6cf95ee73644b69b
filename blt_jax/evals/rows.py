"""Rows of tasks, from files of JSON lines."""

import codecs
import hashlib
import json
from typing import Any

from blt_jax import tokenizer
from blt_jax.cli.parsing import nearest
from blt_jax.storage import files, unique_names
from blt_jax.storage.folders import Folder
from blt_jax.storage.paths import Path

_EXAMPLES = {"mmlu_test": "mmlu_dev"}  # file -> where its examples are


class PlacedRow(dict[str, Any]):
  """A row that knows where it was read.

  Attributes:
    place: its file and line.
  """

  def __init__(self, fields: dict[str, Any], place: str):
    """Takes the fields and the place."""
    super().__init__(fields)
    self.place = place


def read(folder: Path, name: str) -> list[PlacedRow]:
  """The rows of NAME.jsonl in a folder.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: a line is no JSON object, or there is none.
  """
  home, file = Folder(folder), f"{name}.jsonl"
  if not home.exists(file):
    raise FileNotFoundError(
      f"{home.path_of(file)} is missing; a task's rows are JSON lines."
      f"{nearest(file, home.sizes())} A set of your own needs another name than the tasks here."
    )
  path = home.path_of(file)
  content = files.read_bytes(path).removeprefix(codecs.BOM_UTF8)
  lines = enumerate(content.split(b"\n"), 1)
  found = [_parse(path, number, line) for number, line in lines if line.strip()]
  if not found:
    raise ValueError(f"{path} has no rows.")
  return found


def digest(folder: Path, name: str) -> str:
  """SHA-256 of NAME.jsonl in a folder."""
  content = files.read_bytes(Folder(folder).path_of(f"{name}.jsonl"))
  return hashlib.sha256(content).hexdigest()


def read_shots(folder: Path, name: str) -> list[PlacedRow]:
  """The rows of examples for a file, if there are any beside it."""
  shots = _EXAMPLES.get(name, f"{name}_shots")
  return read(folder, shots) if Folder(folder).exists(f"{shots}.jsonl") else []


def _parse(path: str, number: int, line: bytes) -> PlacedRow:
  try:
    row = json.loads(line.decode(), object_pairs_hook=unique_names.refuse)
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path}, line {number}, is no JSON ({error}).") from error
  if b"\\u" in line and not tokenizer.is_text(json.dumps(row, ensure_ascii=False)):
    raise ValueError(f"{path}, line {number}, has half a surrogate pair, which is no text.")
  if not isinstance(row, dict):
    raise ValueError(f"{path}, line {number}, is {type(row).__name__}; a row is an object.")
  return PlacedRow(row, f"{path}, line {number},")
