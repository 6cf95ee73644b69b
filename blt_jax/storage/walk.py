"""Files of this machine's disks: below a folder or by a glob, links to folders followed."""

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from glob import has_magic

import fsspec.utils

Reject = Callable[[OSError], None]
Note = Callable[[str, str], None]  # why something is left out, and its path

_KINDS = {
  stat.S_IFIFO: "a pipe",
  stat.S_IFCHR: "a device",
  stat.S_IFBLK: "a device",
  stat.S_IFSOCK: "a socket",
}


def check_regular(path: str) -> None:
  """Looks at what a path leads to; a link that leads nowhere is left to whoever reads it.

  Raises:
    OSError: it may hang or never end when it is read, such as a pipe.
  """
  kind = stat.S_IFMT(os.stat(path).st_mode) if os.path.exists(path) else stat.S_IFREG
  if kind not in (stat.S_IFREG, stat.S_IFDIR):
    what = f"it is {_KINDS.get(kind, 'no file')}; give a file, which can be read again"
    raise OSError(errno.EINVAL, what, path)


def is_hidden(name: str, given: str) -> bool:
  """Whether a part of a path that the user did not write starts with a dot."""
  return any(part.startswith(".") for part in set(name.split("/")) - set(given.split("/")))


def walk(
  root: str, reject: Reject, note: Note, depth: int | None = None, given: str = ""
) -> Iterator[str]:
  """Paths at any depth below a folder that are no folders, hidden ones aside.

  Links to folders are followed, each folder once: the folder itself before links to it, and
  of several links the one whose path is the first.

  Args:
    root: the folder.
    reject: takes folders that cannot be read.
    note: takes links that are not followed.
    depth: levels to look at; None for all.
    given: the path that the user wrote, if not the root's.
  """
  home, seen = os.path.realpath(root), set[str]()
  waiting = [root]
  while waiting:
    start, links = waiting.pop(0), []
    target = os.path.realpath(start)
    if start != root and f"{home}/".startswith(f"{target.rstrip('/')}/"):
      note("a link to a folder above", start)
      continue
    for folder, names, others in os.walk(start, onerror=reject):
      real = target + folder[len(start) :].rstrip("/")
      level = folder.rstrip("/").count("/") - root.rstrip("/").count("/") + 1
      if real in seen:
        note("a link to a folder that is read already", folder)
        names.clear()
        continue
      seen.add(real)
      paths = (f"{folder.rstrip('/')}/{name}" for name in names)
      below = [p for p in paths if level != depth and not is_hidden(p, given or root)]
      names[:] = [p.rpartition("/")[2] for p in below]
      links += [p for p in below if os.path.islink(p)]
      yield from (f"{folder.rstrip('/')}/{name}" for name in others)
    waiting += sorted(links)


def glob(pattern: str, reject: Reject, note: Note) -> Iterator[str]:
  """Paths that match a pattern, as `fsspec` understands it and `walk` finds them."""
  parts = pattern.split("/")
  fixed = next(i for i, part in enumerate(parts) if has_magic(part))
  root, depth = "/".join(parts[:fixed]) or "/", len(parts) - fixed
  is_match = re.compile(fsspec.utils.glob_translate(pattern)).match
  found = walk(root, reject, note, None if "**" in pattern else depth, pattern)
  return filter(is_match, found) if os.path.isdir(root) else iter(())
