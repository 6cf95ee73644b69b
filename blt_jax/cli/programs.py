"""Compiled programs are kept on disk, so that a command compiles once on a machine."""

import hashlib
import os
import pathlib
import platform
import re
from typing import Any

import jax

_MOST_BYTES = 4 << 30  # of all programs


def keep_programs() -> None:
  """Has JAX keep what it compiles in the user's cache folder, and finds it there again.

  The environment has the last word: JAX_COMPILATION_CACHE_DIR names another folder,
  JAX_ENABLE_COMPILATION_CACHE=false keeps nothing. Processors that differ have folders of
  their own, for hosts that share a home. A home that cannot be written keeps nothing.
  """
  if _setting("compilation_cache_dir") or not _setting("enable_compilation_cache"):
    return
  home = _cache_home() / "blt_jax" / "programs"
  folder = home / _processor()
  try:
    folder.mkdir(parents=True, exist_ok=True)
    _make_room(home)
  except OSError:
    return
  if os.access(folder, os.W_OK):
    jax.config.update("jax_compilation_cache_dir", str(folder))


def _setting(name: str) -> Any:
  return getattr(jax.config, f"jax_{name}")


def _cache_home() -> pathlib.Path:
  given = os.environ.get("XDG_CACHE_HOME")
  return pathlib.Path(given) if given else pathlib.Path.home() / ".cache"


def _processor() -> str:
  """Names what programs for this processor may use, as far as is known."""
  known = pathlib.Path("/proc/cpuinfo")
  text = known.read_text() if known.exists() else platform.processor()
  abilities = re.search(r"^(flags|Features)\s*:.*$", text, re.MULTILINE)
  what = abilities[0] if abilities else text
  return f"{platform.machine()}-{hashlib.sha256(what.encode()).hexdigest()[:12]}"


def _make_room(home: pathlib.Path) -> None:
  """Removes those programs that nobody has used for the longest time, if all are too many."""
  found = []
  for path in home.rglob("*"):
    try:
      if path.is_file():
        status = path.stat()
        found.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    except FileNotFoundError:  # another process makes room
      continue
  total = sum(size for _, size, _ in found)
  for _, size, path in sorted(found):
    if total <= _MOST_BYTES:
      return
    path.unlink(missing_ok=True)
    total -= size
