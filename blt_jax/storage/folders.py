"""Folders, local or remote, whose files are whole or not there."""

import contextlib
import json
import operator
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

from etils import epath

from blt_jax.storage import atomic, files


class Folder:
  """A folder on a disk, or at a URL that fsspec knows, such as gs://."""

  def __init__(self, path: str | os.PathLike):
    """Takes the path; nothing need be there.

    Raises:
      ValueError: no library for such a URL.
    """
    self.path = os.fspath(path)
    self._filesystem, self._root = files.find_filesystem(self.path)
    self._local = None if files.is_remote(self.path) else pathlib.Path(self._root)

  def __str__(self) -> str:
    return self.path

  def make(self) -> None:
    """Makes a local folder and those above it; a remote one comes with its first file.

    Raises:
      NotADirectoryError: there is a file of this name.
    """
    if not self._local:
      return
    try:
      self._local.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
      raise NotADirectoryError(f"{self} is a file; give the name of a folder.") from error

  def path_of(self, name: str) -> str:
    """The path of a file."""
    return str(self._local / name) if self._local else f"{self.path.rstrip('/')}/{name}"

  def sizes(self) -> dict[str, int]:
    """Name -> bytes of all in it, in the order of their names; empty where it is missing."""
    if not self._filesystem.exists(self._root):
      return {}
    found = self._filesystem.ls(self._root, detail=True, refresh=True)
    return {
      f["name"].rpartition("/")[2]: f["size"]
      for f in sorted(found, key=operator.itemgetter("name"))
    }

  def exists(self, name: str) -> bool:
    """Whether there is such a file."""
    return self._filesystem.exists(f"{self._root}/{name}")

  def remove(self, name: str) -> None:
    """Removes a file."""
    self._filesystem.rm_file(f"{self._root}/{name}")

  def read_json(self, name: str) -> dict[str, Any]:
    """The fields of a JSON file.

    Raises:
      ValueError: it is damaged.
    """
    content = self._filesystem.cat_file(f"{self._root}/{name}")
    return atomic.parse_json(content, self.path_of(name))

  def write_json(self, name: str, fields: dict[str, Any]) -> None:
    """Writes a JSON file.

    Raises:
      OSError: it cannot be written.
    """
    text = json.dumps(fields, indent=2)
    try:
      if self._local:
        atomic.write_text(epath.Path(self._local / name), text)
      else:
        self._filesystem.pipe_file(f"{self._root}/{name}", f"{text}\n".encode())
    except OSError as error:
      raise OSError(
        f"{self.path_of(name)} cannot be written: {error}. Check free space and permissions."
      ) from error

  @contextlib.contextmanager
  def new_file(self, name: str) -> Iterator[pathlib.Path]:
    """A local path to write a file at, which gets its name at the end if all went well.

    For a remote folder it lies among the temporary files (TMPDIR) until it is uploaded.
    """
    if self._local:
      partial = (self._local / name).with_suffix(f".{os.getpid()}.partial")
      try:
        yield partial
        with partial.open("rb") as file:
          os.fsync(file.fileno())  # or a power cut leaves a whole name and nothing in it
        partial.rename(self._local / name)
      except BaseException:
        partial.unlink(missing_ok=True)
        raise
    else:
      with tempfile.TemporaryDirectory() as aside:
        yield pathlib.Path(aside) / name
        self._filesystem.put_file(f"{aside}/{name}", f"{self._root}/{name}")
