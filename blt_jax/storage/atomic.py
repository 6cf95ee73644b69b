"""Files that are whole or not there: the one place that writes aside and renames."""

import contextlib
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from blt_jax.storage import causes, leftovers, paths
from blt_jax.storage.paths import Path


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[pathlib.Path]:
  """A local path to write a file at, which takes its name or is uploaded if all went well.

  It has the file's own name, in a hidden folder beside it, see `leftovers.own_folder`; that
  of a remote file lies among the temporary files (TMPDIR). What is no file, such as
  /dev/stdout, is written to as it is; of a link, what it leads to.

  Raises:
    OSError: it cannot be written; before anything is, where that can be known.
    ValueError: no library for such a URL.
  """
  filesystem, name = paths.find_filesystem(path)
  if filesystem.isdir(name):
    raise IsADirectoryError(f"{path} is a folder; give the name of a file.")
  if paths.is_remote(path):
    with tempfile.TemporaryDirectory() as aside:
      partial = pathlib.Path(aside, name.rpartition("/")[2])
      yield partial
      with paths.naming(path):
        filesystem.put_file(str(partial), name)
    return
  if os.path.exists(name) and not os.path.isfile(name):
    yield pathlib.Path(name)
    return
  whole = pathlib.Path(os.path.realpath(name))
  if not whole.parent.is_dir():
    raise FileNotFoundError(f"no folder {whole.parent}; make it first.")
  with leftovers.own_folder(whole) as aside:
    partial = aside / whole.name
    yield partial
    with partial.open("rb") as file:
      os.fsync(file.fileno())  # or a power cut leaves a whole name and nothing in it
    partial.replace(whole)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[TextIO]:
  """Opens a `new_file` of text."""
  with new_file(path) as partial, partial.open("w", encoding="utf-8") as file:
    yield file


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[str]:
  """A folder to fill, which has its name once it is whole; a remote one has it at once.

  Raises:
    OSError: it cannot be written, or something has its name by then.
    ValueError: no library for such a URL.
  """
  if paths.is_remote(path):
    yield os.fspath(path)
    return
  whole = pathlib.Path(paths.absolute(path))
  with contextlib.ExitStack() as stack:
    with explaining(path):
      whole.parent.mkdir(parents=True, exist_ok=True)
      partial = stack.enter_context(leftovers.own_folder(whole)) / whole.name
      partial.mkdir()
    yield str(partial)
    partial.rename(whole)


@contextlib.contextmanager
def explaining(path: Path, advice: str = "", after: str = "") -> Iterator[None]:
  """Says what an error of writing means.

  Args:
    path: what is written.
    advice: what to do; empty for what the error's cause suggests.
    after: what to say behind the advice.

  Raises:
    OSError: what was raised, with the path and the advice; but for a folder in the way.
  """
  try:
    yield
  except IsADirectoryError:
    raise  # `new_file` says what to do
  except (OSError, RuntimeError) as error:
    text = str(error).rstrip(".")
    advice = advice or causes.advice(error)
    raise OSError(f"{path} cannot be written: {text}. {advice}{after}.") from error


def write_json(path: Path, fields: Mapping[str, Any]) -> None:
  """Writes a JSON object.

  Raises:
    OSError: it cannot be written.
  """
  with explaining(path), writing(path) as file:
    file.write(json.dumps(fields, indent=2) + "\n")
