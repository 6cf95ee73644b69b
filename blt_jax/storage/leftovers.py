"""Hidden folders to write files in, and what is left of those whose process was killed."""

import contextlib
import fcntl
import os
import pathlib
import re
import secrets
import shutil
import socket
from collections.abc import Iterator

_END = ".partial"


@contextlib.contextmanager
def own_folder(whole: pathlib.Path) -> Iterator[pathlib.Path]:
  """A new hidden folder beside a file that is to be written, gone afterwards.

  Its name has the file's and this host's, and it is locked while the process lives. First,
  what others of this host left for the same file and do not lock is removed; so is nothing
  that has another name or that belongs to another host.

  Args:
    whole: the file, in a folder that is there.
  """
  start = f".{whole.name}.{_host()}-"
  _remove_left(whole.parent, start)
  folder, lock = _make(whole.parent, start)
  try:
    yield folder
  finally:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)


def _host() -> str:
  return re.sub(r"[^A-Za-z0-9]", "", socket.gethostname()) or "host"


def _make(parent: pathlib.Path, start: str) -> tuple[pathlib.Path, int]:
  """A new folder and its lock, unless it was taken for a leftover before it had one."""
  while True:
    folder = parent / f"{start}{secrets.token_hex(4)}{_END}"
    folder.mkdir(mode=0o700)
    with contextlib.suppress(FileNotFoundError):
      lock = os.open(folder, os.O_RDONLY)
      with contextlib.suppress(OSError):  # a disk without locks: nobody removes it then
        fcntl.flock(lock, fcntl.LOCK_EX)
      if folder.exists():
        return folder, lock
      os.close(lock)


def _remove_left(parent: pathlib.Path, start: str) -> None:
  is_own = re.compile(re.escape(start) + r"[0-9a-f]{8}" + re.escape(_END)).fullmatch
  for name in filter(is_own, os.listdir(parent)):
    with contextlib.suppress(OSError):  # locked, or gone, or not ours
      lock = os.open(parent / name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(parent / name)
      finally:
        os.close(lock)
