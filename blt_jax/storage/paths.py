"""Where a path is: on a disk of this machine, or at a URL."""

import contextlib
import errno
import os
import pathlib
import posixpath
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


def absolute(path: Path) -> str:
  """The whole path, without `..` and without a slash at its end; a URL as it is."""
  if is_remote(path):
    return os.fspath(path).rstrip("/")
  return os.path.normpath(find_filesystem(path)[1])


def relative(path: Path, folder: Path) -> str:
  """A path as seen from a folder, such as "../entropy"; whole where they share no root."""
  whole, start = absolute(path), absolute(folder)
  if _root(whole) != _root(start):
    return whole
  return posixpath.relpath(whole[len(_root(whole)) :] or ".", start[len(_root(start)) :] or ".")


def join(folder: Path, path: Path) -> str:
  """What `relative` was given; a whole path as it is."""
  path, start = os.fspath(path), absolute(folder)
  if is_remote(path) or posixpath.isabs(path):
    return path
  root = _root(start)
  found = posixpath.normpath(posixpath.join(start[len(root) :], path))
  return root + found if found != "." else root


def _root(whole: str) -> str:
  """What paths have to share: "/" on disks, and the bucket of a URL."""
  scheme, separator, rest = whole.partition("://")
  return f"{scheme}://{rest.partition('/')[0]}/" if separator else "/"


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
