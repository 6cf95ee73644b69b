"""Files that are whole or not there."""

import os

from etils import epath


def write_text(path: epath.Path, text: str) -> None:
  """Writes aside and renames, so that a file cut short never looks whole."""
  partial = path.with_suffix(f".{os.getpid()}.partial")  # processes may share the folder
  partial.write_text(text + "\n")
  partial.replace(path)
