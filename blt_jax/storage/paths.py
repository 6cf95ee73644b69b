"""Where a path is: on a disk of this machine, or at a URL."""

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterator

import fsspec
from fsspec.implementations.local import LocalFileSystem

Path = str | os.PathLike


def is_remote(path: Path) -> bool:
  """Whether a path is a URL such as gs://bucket/file."""
  return "://" in os.fspath(path) and not os.fspath(path).startswith("file://")


def find_filesystem(path: Path) -> tuple[fsspec.AbstractFileSystem, str]:
  """The file system of a path, which forgets what it listed there, and the path in it.

  Raises:
    ValueError: no library for such a URL, or an empty path, which is no current folder.
  """
  path = os.fspath(path)
  if not path.strip():
    raise ValueError(f"The path {path!r} is empty; write . for the current folder.")
  if not is_remote(path):
    return LocalFileSystem(), LocalFileSystem._strip_protocol(path)
  try:
    filesystem, name = fsspec.core.url_to_fs(path)
  except ImportError as error:
    raise ValueError(f"{path} cannot be opened: {error}.") from error
  filesystem.invalidate_cache(name)  # others may have written since
  return filesystem, name


def exists(path: Path) -> bool:
  """Whether a file or a folder is there."""
  filesystem, name = find_filesystem(path)
  return filesystem.exists(name) if is_remote(path) else pathlib.Path(name).exists()


def move(source: Path, target: Path) -> None:
  """Moves a file, or a folder with all in it, to where nothing is on the same file system."""
  filesystem, name = find_filesystem(source)
  filesystem.mv(name, find_filesystem(target)[1], recursive=True)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
  """Lets errors of a missing remote file name its path, as those of local ones do."""
  try:
    yield
  except FileNotFoundError as error:
    text = os.strerror(errno.ENOENT)
    raise FileNotFoundError(errno.ENOENT, text, os.fspath(path)) from error
