"""Pictures of a run: the first one of a path, continued ones as PNG, patches drawn on them."""

from collections.abc import Sequence

import numpy as np

from blt_jax.cli import plots
from blt_jax.cli.patch_view import Patched
from blt_jax.data.reading import pictures, sources
from blt_jax.data.reading.documents import SourceOptions
from blt_jax.storage import atomic

_CHANNELS = range(1, 5)  # of a PNG file


def first(path: str, options: SourceOptions, run: str) -> np.ndarray:
  """The first picture of a path, uint8 [H, W, C].

  Args:
    path: as `config.data.path` of pictures.
    options: how the run reads its own.
    run: its folder, for messages.

  Raises:
    FileNotFoundError: nothing is there.
    ValueError: the run is not of pictures, or this one is of another size.
  """
  if options.pictures is None:
    raise ValueError(f"{run} did not learn pictures; leave --picture out.")
  document = next(sources.each_document(sources.open_source(path, options)))
  return np.frombuffer(document.text, np.uint8).reshape(options.pictures)


def split(picture: np.ndarray) -> tuple[bytes, int]:
  """The bytes of the upper half of a picture [H, W, C], and how many are in the lower one.

  Raises:
    ValueError: it has a single row, or more channels than a PNG file.
  """
  if picture.shape[2] not in _CHANNELS:
    raise ValueError(f"A PNG file has 1 to 4 channels, a picture here {picture.shape[2]}.")
  if len(picture) < 2:
    raise ValueError(f"A picture of {pictures.show(picture.shape)} has no upper half.")
  half = picture[: len(picture) // 2]
  return half.tobytes(), picture.size - half.size


def write(path: str, shown: Sequence[np.ndarray]) -> None:
  """Writes pictures uint8 [H, W, C] side by side to a PNG file.

  Raises:
    ImportError: Pillow is missing.
  """
  from PIL import Image

  pixels = np.concatenate(shown, axis=1)
  shape = pixels.shape if pixels.shape[2] > 1 else pixels.shape[:2]
  with atomic.new_file(path) as file:
    Image.fromarray(pixels.reshape(shape)).save(file, format="PNG")


def legend(patched: Patched) -> str:
  """How many patches a picture has, its BOS aside."""
  count = len(patched.tokens) - 1
  patches = int(patched.starts[1:].sum())
  return f"{count} bytes in {patches} patches, {count / max(patches, 1):.2f} bytes each"


def draw(patched: Patched, picture: np.ndarray, path: str) -> None:
  """Draws a picture [H, W, C], and a line in front of each byte that starts a patch.

  Raises:
    ImportError: matplotlib is missing.
  """
  pyplot = plots.import_pyplot()
  height, width, channels = picture.shape
  row, byte = np.divmod(np.flatnonzero(patched.starts[1:]), width * channels)
  grey = channels < 3
  scale = 6 / max(height, width)
  figure, axes = pyplot.subplots(figsize=(scale * width, scale * height), layout="constrained")
  axes.imshow(picture[..., 0] if grey else picture[..., :4], "gray", vmin=0, vmax=255)
  axes.vlines(byte / channels - 0.5, row - 0.5, row + 0.5, color="tab:red", linewidth=1.5)
  axes.set_axis_off()
  with atomic.new_file(path) as file:
    figure.savefig(file, dpi=150)
  pyplot.close(figure)
