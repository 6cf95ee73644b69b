"""Results as they come, so that work which was stopped goes on where it was."""

import contextlib
import fcntl
import json
import pathlib
import shutil
import tempfile
import time
from collections.abc import Mapping
from typing import Any, BinaryIO

from absl import logging

from blt_jax.storage import atomic, files, paths

_END = ".unfinished"
_UPLOAD_SECONDS = 60


class Journal:
  """A file beside a file that is to be written, with a line for each result, until it is.

  Attributes:
    path: of the journal, the file's with an ending.
    done: key -> result, of a process before this one.
  """

  def __init__(self, whole: str, made_from: Mapping[str, Any]):
    """Looks what there is of a file.

    Args:
      whole: the file's path; remote, or local in a folder that is there.
      made_from: what results depend on, as JSON has it.

    Raises:
      ValueError: what is there depends on something else, is no journal, or belongs to a
        process that is at work.
    """
    self.path = f"{whole}{_END}"
    self._aside = tempfile.TemporaryDirectory() if paths.is_remote(whole) else None
    name = self._aside and f"{self._aside.name}/journal"
    self._here = pathlib.Path(name or paths.find_filesystem(self.path)[1])
    if self._aside is not None and paths.exists(self.path):
      self._here.write_bytes(files.read_bytes(self.path))
    self._header = json.loads(json.dumps(made_from))
    self._file: BinaryIO | None = None
    self._pushed_at = time.monotonic()
    self.done = self._read() if self._here.exists() else {}
    if self.done:
      logging.info("Goes on after %d results of %s.", len(self.done), self.path)

  def add(self, key: tuple[int, ...], result: Mapping[str, Any]) -> None:
    """Notes a result.

    Raises:
      ValueError: another process notes results in the same journal.
    """
    if self._file is None:
      self._file = self._open()
    self._file.write(_line([key, result]))
    if time.monotonic() > self._pushed_at + _UPLOAD_SECONDS:
      self._push()

  def close(self, is_whole: bool) -> None:
    """Removes the journal of a file that is whole; keeps that of one that is not."""
    if not is_whole:
      self._push()
    elif paths.exists(self.path):
      filesystem, name = paths.find_filesystem(self.path)
      filesystem.rm(name)
    if self._file is not None:
      self._file.close()

  def _push(self) -> None:
    """Uploads the journal of a remote file: objects of a bucket cannot grow."""
    if self._aside is not None and self._file is not None:
      with atomic.new_file(self.path) as copy:
        shutil.copyfile(self._here, copy)
      self._pushed_at = time.monotonic()

  def _read(self) -> dict[tuple[int, ...], dict[str, Any]]:
    lines = self._here.read_bytes().split(b"\n")[:-1]  # a kill may leave half of the last
    try:
      header, *results = [json.loads(line) for line in lines or [b"{}"]]
      done = {tuple(key): dict(result) for key, result in results}
      began_with = dict(header)
    except (ValueError, TypeError) as error:
      raise ValueError(f"{self.path} is no journal ({error}); rename or remove it.") from None
    changed = [k for k in self._header if began_with.get(k, "") != self._header[k]]
    if changed and lines:
      raise ValueError(
        f"{self.path} has results made otherwise: {', '.join(changed)} changed. Give the same "
        "again to go on, or remove it to start anew."
      )
    return done

  def _open(self) -> BinaryIO:
    """The journal to write on, after its last whole line."""
    file = self._here.open("ab+", buffering=0)
    with contextlib.suppress(OSError):  # a disk without locks
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        raise ValueError(
          f"Another process writes {self.path}; wait for it, or choose another file."
        ) from None
    file.seek(0)
    size = file.read().rfind(b"\n") + 1
    file.truncate(size)
    if not size:
      file.write(_line(self._header))
    return file


def _line(content: Any) -> bytes:
  return json.dumps(content).encode() + b"\n"
