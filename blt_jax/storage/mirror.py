"""Files that grow, in a folder that may be remote."""

import pathlib
import tempfile

from blt_jax.storage import files, paths
from blt_jax.storage.folders import Folder
from blt_jax.storage.paths import Path


class Mirror:
  """A folder of this machine: that which is meant, or one whose files are uploaded to it.

  Objects of a bucket cannot grow: each `push` writes them again.

  Attributes:
    path: of the folder of this machine.
  """

  def __init__(self, folder: Path, *names: str):
    """Takes the folder, and the names of files to go on with where they are in it.

    Raises:
      ValueError: no library for such a URL.
    """
    self._folder = Folder(folder)
    self._aside = tempfile.TemporaryDirectory() if self._folder.is_remote else None
    if self._aside is None:
      self.path = pathlib.Path(paths.find_filesystem(folder)[1])
      return
    self.path = pathlib.Path(self._aside.name)
    for name in filter(self._folder.exists, names):
      (self.path / name).write_bytes(files.read_bytes(self._folder.path_of(name)))

  def push(self) -> None:
    """Uploads all files, where they are to be remote.

    Raises:
      OSError: they cannot be written.
    """
    for path in self.path.rglob("*") if self._aside is not None else ():
      if path.is_file():
        target = self._folder.path_of(path.relative_to(self.path).as_posix())
        filesystem, name = paths.find_filesystem(target)
        with paths.naming(target):
          filesystem.put_file(str(path), name)
