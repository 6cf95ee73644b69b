"""Files to read, local or remote: which there are, and what is in them."""

import functools
import glob
import hashlib
import json
import os
import pathlib
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

import fsspec

from blt_jax.storage import atomic, paths
from blt_jax.storage.paths import Path

STDLIB = "stdlib"

_FORMATS = {
  ".jsonl": "jsonl",
  ".jsonl.gz": "compressed jsonl",
  ".jsonl.zst": "compressed jsonl",
  ".jsonl.xz": "compressed jsonl",
  ".json.gz": "compressed jsonl",  # so C4 and others are named
  ".json.zst": "compressed jsonl",
  ".json.xz": "compressed jsonl",
  ".parquet": "parquet",
  ".array_record": "array_record",
  ".arrayrecord": "array_record",
}


def format_of(path: str) -> str:
  """The format that a file's name stands for; "text" where it stands for none."""
  return next((f for end, f in _FORMATS.items() if path.lower().endswith(end)), "text")


def read_bytes(path: Path) -> bytes:
  """All bytes of a file, as it is stored.

  Raises:
    FileNotFoundError: it is not there.
  """
  filesystem, name = paths.find_filesystem(path)
  if not paths.is_remote(path):
    return pathlib.Path(name).read_bytes()  # also of a pipe
  with paths.naming(path):
    return filesystem.cat_file(name)


def read_json(path: Path) -> dict[str, Any]:
  """The fields of a JSON file that this project wrote.

  Raises:
    FileNotFoundError: it is not there.
    ValueError: somebody damaged it.
  """
  try:
    fields = json.loads(read_bytes(path))
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path} is damaged, it is no JSON: {error}.") from None
  if not isinstance(fields, dict):
    raise ValueError(f"{path} is damaged, it holds no JSON object.")
  return fields


def list_files(path: str, reject: Callable[[OSError], None] | None = None) -> list[str]:
  """Finds the files that a path stands for.

  Args:
    path: a file, a folder, a glob ("**" for any depth), local or a URL that fsspec knows
      (gs:// needs gcsfs); or "stdlib": the Python standard library's own sources.
    reject: what to do with a local folder that cannot be read; None raises.

  Returns:
    Sorted paths. Of a folder, files at any depth without hidden ones (".name"); links to
    folders are not followed.

  Raises:
    FileNotFoundError: nothing is there.
    OSError: a folder cannot be read.
    ValueError: no library for such a URL.
  """
  if path == STDLIB:
    return _list_stdlib()
  filesystem, root = paths.find_filesystem(path)
  if filesystem.isdir(root) and not paths.is_remote(path):
    found = dict.fromkeys(_walk(root, reject or _raise), {"type": "file"})
  elif filesystem.isdir(root):
    found = filesystem.find(root, detail=True)
  elif filesystem.exists(root):
    found = {root: {"type": "file"}}
  elif glob.has_magic(root):
    found = filesystem.glob(root, detail=True)
  else:
    found = {}
  names = [
    name
    for name, info in found.items()
    if _is_file(filesystem, name, info) and not _is_hidden(name, root)
  ]
  if not names and not filesystem.exists(root):
    raise FileNotFoundError(
      f"No file or folder {path}; give that of your text (config.data.path, --input, --data)."
    )
  if paths.is_remote(path):
    names = [filesystem.unstrip_protocol(n) for n in names]
  return sorted(names)


def _walk(root: str, reject: Callable[[OSError], None]) -> Iterator[str]:
  """Files at any depth; fsspec's own walk leaves out what it cannot read, without a word."""
  for folder, _, names in os.walk(root, onerror=reject):
    found = (f"{folder.rstrip('/')}/{name}" for name in names)
    yield from (path for path in found if os.path.isfile(path) or os.path.islink(path))


def _raise(error: OSError) -> None:
  raise error


def sizes_of(found: Sequence[str]) -> list[int]:
  """Bytes of files, all local or all at one place; 0 of a link that leads nowhere."""
  if found and paths.is_remote(found[0]):
    return fsspec.core.url_to_fs(found[0])[0].sizes(list(found))  # as listed, if just now
  return [os.path.getsize(path) if os.path.exists(path) else 0 for path in found]


def fingerprint(found: Sequence[str]) -> str:
  """A text that tells files from others, by their names and sizes."""
  sizes = sizes_of(found)
  names = [path.rpartition("/")[2] for path in found]
  digest = hashlib.sha256(repr([*zip(names, sizes, strict=True)]).encode()).hexdigest()[:8]
  return f"{len(found):,} files of {sum(sizes):,} bytes ({digest})"


def _list_stdlib() -> list[str]:
  root = pathlib.Path(sysconfig.get_path("stdlib"))
  skipped = {"site-packages", "dist-packages", "test", "tests", "idlelib"}
  files = sorted(root.rglob("*.py"))
  return [str(f) for f in files if skipped.isdisjoint(f.relative_to(root).parts)]


def _is_file(filesystem, name, info) -> bool:
  """Also a link that leads nowhere: reading it says so, and nothing is lost in silence."""
  return info["type"] == "file" or (info.get("islink", False) and not filesystem.isdir(name))


def _is_hidden(name: str, root: str) -> bool:
  """Whether a part of the path that the user did not write starts with a dot."""
  return any(part.startswith(".") for part in set(name.split("/")) - set(root.split("/")))


def open_file(path: str) -> BinaryIO:
  """Opens a file to read its bytes; those of compressed JSONL uncompressed."""
  return _prepare(path).open()


def read_start(path: str, size: int) -> tuple[bytes, int]:
  """Up to `size` bytes of a file as `open_file` gives them, and how many it stores for them."""
  with (opened := _prepare(path)) as file:
    return file.read(size), max(opened.fobjects[0].tell(), 1)


def _prepare(path: str) -> fsspec.core.OpenFile:
  compression = "infer" if format_of(path) == "compressed jsonl" else None
  return fsspec.open(path, "rb", compression=compression)


def copy_here(path: Path) -> str:
  """A path on this machine's disks of a file: its own, or that of a copy.

  Copies of remote files lie in `$XDG_CACHE_HOME/blt_jax` (~/.cache/blt_jax), whole, and
  stay there for other processes and runs, until somebody removes them. A file that has
  changed is copied again.

  Raises:
    FileNotFoundError: a remote file is not there.
  """
  filesystem, name = paths.find_filesystem(path)
  if not paths.is_remote(path):
    return name
  cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "blt_jax"
  cache.mkdir(parents=True, exist_ok=True)
  with paths.naming(path):
    version = f"{filesystem.unstrip_protocol(name)} {filesystem.ukey(name)}"
    key = hashlib.sha256(version.encode()).hexdigest()[:32]
    copy = cache / f"{key}-{name.rpartition('/')[2]}"
    if not copy.exists():
      with atomic.new_file(copy) as aside:  # others may copy the same file
        filesystem.get_file(name, str(aside))
  return str(copy)


class RangeReader:
  """Reads parts of files; may be shared by threads and sent to other processes."""

  def __init__(self):
    # Opening costs ten times as much as reading a short document.
    self._open = functools.lru_cache(maxsize=64)(lambda path: open(path, "rb", buffering=0))  # noqa: SIM115

  def __reduce__(self):
    return RangeReader, ()

  def __call__(self, path: str, start: int, stop: int) -> bytes:
    """The bytes [start, stop) of a file.

    Raises:
      OSError: it cannot be read, or is shorter.
    """
    if paths.is_remote(path):
      filesystem, name = fsspec.core.url_to_fs(path)
      content = filesystem.cat_file(name, start, stop)
    else:
      file = self._open(path)  # held here: another thread may push it out and close it
      content = os.pread(file.fileno(), stop - start, start)
    if len(content) != stop - start:
      raise OSError(f"it ends before byte {stop}: did it change while being read?")
    return content
