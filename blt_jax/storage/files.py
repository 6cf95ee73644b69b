"""Files to read, local or remote: which there are, and what is in them."""

import functools
import glob
import hashlib
import json
import os
import pathlib
import sysconfig
from collections.abc import Sequence
from typing import Any, BinaryIO

import fsspec
from absl import logging
from fsspec.utils import infer_compression

from blt_jax.storage import atomic, paths, unique_names, walk
from blt_jax.storage.paths import Path

STDLIB = "stdlib"

_FORMATS = {
  ".jsonl": "jsonl",
  ".ndjson": "jsonl",
  ".json": "json",
  ".csv": "csv",
  ".tsv": "tsv",
  ".parquet": "parquet",
  ".arrow": "arrow",
  ".array_record": "array_record",
  ".arrayrecord": "array_record",
}
_COMPRESSIONS = ".gz", ".zst", ".xz"
_COMPRESSIBLE = "jsonl", "json", "csv", "tsv"


def format_of(path: str) -> str:
  """The format that a file's name stands for; "text" where it stands for none."""
  plain, ending = os.path.splitext(path.lower())
  is_packed = ending in _COMPRESSIONS
  kind = _FORMATS.get(os.path.splitext(plain)[1] if is_packed else ending, "text")
  return "text" if is_packed and kind not in _COMPRESSIBLE else kind


def is_compressed(path: str) -> bool:
  """Whether `open_file` unpacks a file."""
  return format_of(path) != "text" and path.lower().endswith(_COMPRESSIONS)


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
    ValueError: somebody damaged it, or it holds NaN, or a name several times.
  """
  try:
    fields = json.loads(
      read_bytes(path), parse_constant=_parse_constant, object_pairs_hook=unique_names.refuse
    )
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path} is damaged, it is no JSON: {error}.") from None
  if not isinstance(fields, dict):
    raise ValueError(f"{path} is damaged, it holds no JSON object.")
  return fields


def _parse_constant(name: str) -> float:
  if name == "NaN":
    raise ValueError("a number is NaN")
  return float(name)


def list_files(
  path: str, reject: walk.Reject | None = None, note: walk.Note | None = None
) -> list[str]:
  """Finds the files that a path stands for.

  Args:
    path: a file, a folder, a glob ("**" for any depth), local or a URL that fsspec knows
      (gs:// needs gcsfs); or "stdlib": the Python standard library's own sources.
    reject: what to do with local folders that cannot be read and with what is no file, such
      as a pipe; None raises.
    note: takes links to folders that are not followed, see `walk.walk`.

  Returns:
    Sorted paths. Of a folder, files at any depth without hidden ones (".name").

  Raises:
    FileNotFoundError: nothing is there.
    OSError: a folder cannot be read.
    ValueError: no library for such a URL, or an empty path.
  """
  if path == STDLIB:
    return _list_stdlib()
  filesystem, root = paths.find_filesystem(path)
  if paths.is_remote(path):
    names = _list_remote(filesystem, root)
  else:
    names = _list_local(root, reject or _raise, note or _log)
  if not names and not filesystem.exists(root):
    raise FileNotFoundError(
      f"No file or folder {path}; give that of your text or pictures (config.data.path, "
      "--input, --data, --picture)."
    )
  return sorted(names)


def _list_remote(filesystem: fsspec.AbstractFileSystem, root: str) -> list[str]:
  if filesystem.isdir(root):
    found = filesystem.find(root, detail=True)
  elif filesystem.exists(root):
    found = {root: {"type": "file"}}
  else:
    found = filesystem.glob(root, detail=True) if glob.has_magic(root) else {}
  names = [n for n, info in found.items() if info["type"] == "file"]
  return [filesystem.unstrip_protocol(n) for n in names if not walk.is_hidden(n, root)]


def _list_local(root: str, reject: walk.Reject, note: walk.Note) -> list[str]:
  if os.path.isdir(root):
    found = walk.walk(root, reject, note)
  elif os.path.lexists(root):
    found = iter([root])
  else:
    found = walk.glob(root, reject, note) if glob.has_magic(root) else iter(())
  names = []
  for name in found:
    try:
      if not walk.is_hidden(name, root):
        walk.check_regular(name)
        names.append(name)
    except OSError as error:
      reject(error)
  return names


def _raise(error: OSError) -> None:
  raise error


def _log(reason: str, path: str) -> None:
  logging.warning("Skipped %s: %s.", path, reason)


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


def open_file(path: str) -> BinaryIO:
  """Opens a file to read its bytes; those of a compressed format unpacked."""
  return _prepare(path).open()


def read_start(path: str, size: int) -> tuple[bytes, int]:
  """Up to `size` bytes of a file as `open_file` gives them, and how many it stores for them."""
  with (opened := _prepare(path)) as file:
    return file.read(size), max(opened.fobjects[0].tell(), 1)


def _prepare(path: str) -> fsspec.core.OpenFile:
  if paths.is_remote(path):
    return fsspec.open(path, "rb", compression="infer" if is_compressed(path) else None)
  filesystem, name = paths.find_filesystem(path)  # which take "::" for a part of the name
  compression = infer_compression(name) if is_compressed(path) else None
  return fsspec.core.OpenFile(filesystem, name, compression=compression)


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
