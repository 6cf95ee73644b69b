"""What items were answered before, so that an evaluation which was stopped goes on."""

import contextlib
import hashlib
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

from blt_jax.evals.task import Request
from blt_jax.storage import files
from blt_jax.storage.folders import Folder
from blt_jax.storage.paths import Path

ITEMS = "items.jsonl"
_UNFINISHED = f"{ITEMS}.unfinished"
_EARLIER = f"{ITEMS}.earlier"


class Memory:
  """Answers in a folder's `items.jsonl`, and beside it while they are being given.

  Those to items that a later call did not ask for are in a third file.

  Attributes:
    model: what answers depend on besides the requests, as JSON has it: run, step, patching.
  """

  def __init__(self, folder: Path | None, model: Mapping[str, Any]):
    """Reads what is there; without a folder, nothing is kept.

    Raises:
      OSError: the folder cannot be read.
    """
    self.model = dict(model)
    self._home = Folder(folder) if folder else None
    self._file: TextIO | None = None
    self._known: dict[str, list[Any]] = {}
    for name in (ITEMS, _EARLIER, _UNFINISHED):
      if self._home is not None and self._home.exists(name):
        self._known |= _read(self._home.path_of(name))

  def key(self, requests: Sequence[Request]) -> str:
    """Digest of the model and of the requests of an item."""
    content = json.dumps([self.model, requests], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()

  def find(self, requests: Sequence[Request]) -> list[Any] | None:
    """The answers to an item's requests, if they were given."""
    return self._known.get(self.key(requests))

  def add(self, requests: Sequence[Request], answers: Sequence[Any]) -> None:
    """Notes answers, at once where the folder is on this machine's disks."""
    key = self.key(requests)
    self._known[key] = list(answers)
    if self._home is None or self._home.is_remote:
      return
    if self._file is None:
      self._home.make()
      path = pathlib.Path(self._home.path_of(_UNFINISHED))
      self._file = path.open("a", encoding="utf-8")
      if self._file.tell():
        self._file.write("\n")  # after half a line, which a kill left
    self._file.write(_line(key, answers))
    self._file.flush()

  def keep_others(self, asked: Iterable[str]) -> None:
    """Writes down what is known beside the keys that were `asked`, before those are."""
    if self._home is None:
      return
    others = {key: self._known[key] for key in self._known.keys() - set(asked)}
    if others or self._home.exists(_EARLIER):
      with self._home.new_file(_EARLIER) as path, path.open("w", encoding="utf-8") as file:
        file.writelines(_line(key, answers) for key, answers in others.items())

  def close(self) -> None:
    """Removes the file of what was being given: all is in `items.jsonl`."""
    if self._file is not None:
      self._file.close()
    if self._home is not None and self._home.exists(_UNFINISHED):
      self._home.remove(_UNFINISHED)


def _line(key: str, answers: Sequence[Any]) -> str:
  return json.dumps({"key": key, "answers": answers}) + "\n"


def _read(path: str) -> dict[str, list[Any]]:
  """Key -> answers; lines without a key, or cut short by a kill, say nothing."""
  found = {}
  for line in files.read_bytes(path).split(b"\n"):
    with contextlib.suppress(ValueError, KeyError, TypeError):
      row = json.loads(line)
      found[row["key"]] = list(row["answers"])
  return found
