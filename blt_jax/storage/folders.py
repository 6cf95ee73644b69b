"""Folders, local or remote, whose files are whole or not there."""

import contextlib
import fcntl
import operator
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from blt_jax.storage import atomic, files, paths
from blt_jax.storage.paths import Path


class Folder:
  """A folder on a disk, or at a URL that fsspec knows, such as gs://."""

  def __init__(self, path: Path):
    """Takes the path; nothing need be there.

    Raises:
      ValueError: no library for such a URL.
    """
    self.path = os.fspath(path)
    self.is_remote = paths.is_remote(self.path)
    root = paths.find_filesystem(self.path)[1]
    self._root = self.path.rstrip("/") if self.is_remote else root

  def __str__(self) -> str:
    return self.path

  def make(self) -> None:
    """Makes a local folder and those above it; a remote one comes with its first file.

    Raises:
      NotADirectoryError: there is a file of this name.
    """
    if self.is_remote:
      return
    try:
      os.makedirs(self._root, exist_ok=True)
    except FileExistsError as error:
      raise NotADirectoryError(f"{self} is a file; give the name of a folder.") from error

  def make_writable(self) -> None:
    """As `make`; tries whether a local one takes a file, before there is much to write.

    Raises:
      OSError: it does not.
    """
    with atomic.explaining(self.path):
      self.make()
      if not self.is_remote:
        with tempfile.TemporaryFile(dir=self._root):
          pass

  @contextlib.contextmanager
  def alone(self) -> Iterator[None]:
    """Keeps other processes of this machine out of their own such blocks of the same folder.

    Where the file system has no locks, and in buckets, it keeps nobody out.
    """
    if self.is_remote:
      yield
      return
    folder = os.open(self._root, os.O_RDONLY)
    try:
      with contextlib.suppress(OSError):
        fcntl.flock(folder, fcntl.LOCK_EX)
      yield
    finally:
      os.close(folder)

  def path_of(self, name: str) -> str:
    """The whole path of a file."""
    return f"{self._root}/{name}"

  def sizes(self) -> dict[str, int]:
    """Name -> bytes of all in it, in the order of their names; empty where it is missing."""
    if not paths.exists(self._root):
      return {}
    filesystem, root = paths.find_filesystem(self._root)
    found = sorted(filesystem.ls(root, detail=True), key=operator.itemgetter("name"))
    return {f["name"].rpartition("/")[2]: f["size"] for f in found}

  def exists(self, name: str) -> bool:
    """Whether there is such a file."""
    return paths.exists(self.path_of(name))

  def remove(self, name: str) -> None:
    """Removes a file, or a folder with all in it."""
    filesystem, path = paths.find_filesystem(self.path_of(name))
    filesystem.rm(path, recursive=True)

  def unmake(self, *names: str) -> None:
    """Removes files that may be there and, if nothing else is in it, the folder."""
    for name in filter(self.exists, names):
      self.remove(name)
    if not self.is_remote:
      with contextlib.suppress(OSError):
        os.rmdir(self._root)

  def read_json(self, name: str) -> dict[str, Any]:
    """The fields of a JSON file, see `files.read_json`."""
    return files.read_json(self.path_of(name))

  def write_json(self, name: str, fields: Mapping[str, Any]) -> None:
    """Writes a JSON file, see `atomic.write_json`."""
    atomic.write_json(self.path_of(name), fields)

  def new_file(self, name: str) -> contextlib.AbstractContextManager[pathlib.Path]:
    """A local path to write a file at, see `atomic.new_file`."""
    return atomic.new_file(self.path_of(name))


class Mirror:
  """A folder of this machine: that which is meant, or one whose files are uploaded to it.

  Objects of a bucket cannot grow: each `push` writes them again.

  Attributes:
    path: of the folder of this machine.
  """

  def __init__(self, folder: Path, *names: str):
    """Takes the folder, and the names of files to go on with where they are in it.

    Raises:
      ValueError: no library for such a URL.
    """
    self._folder = Folder(folder)
    self._aside = tempfile.TemporaryDirectory() if self._folder.is_remote else None
    if self._aside is None:
      self.path = pathlib.Path(paths.find_filesystem(folder)[1])
      return
    self.path = pathlib.Path(self._aside.name)
    for name in filter(self._folder.exists, names):
      (self.path / name).write_bytes(files.read_bytes(self._folder.path_of(name)))

  def push(self) -> None:
    """Uploads all files, where they are to be remote.

    Raises:
      OSError: they cannot be written.
    """
    for path in self.path.rglob("*") if self._aside is not None else ():
      if path.is_file():
        with self._folder.new_file(path.relative_to(self.path).as_posix()) as copy:
          shutil.copyfile(path, copy)
