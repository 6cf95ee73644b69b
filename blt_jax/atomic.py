"""Files that are whole or not there."""

import os
import pathlib


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes aside and renames, so that a file cut short never looks whole."""
  partial = path.with_suffix(f".{os.getpid()}.partial")  # processes may share the folder
  partial.write_text(text + "\n")
  partial.rename(path)
