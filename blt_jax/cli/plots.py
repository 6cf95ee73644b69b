"""Figures for files."""

import argparse
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import logging

from blt_jax.storage import paths


def add_flag(parser: argparse.ArgumentParser, what: str) -> None:
  """Adds `--png`; that its file can be drawn is known before the program does anything.

  Args:
    parser: gets it.
    what: it draws, for --help.
  """
  parser.add_argument("--png", metavar="FILE", type=_figure_path, help=what)


def _figure_path(text: str) -> str:
  """A type for argparse: a file that matplotlib can write."""
  try:
    import_pyplot()
  except ImportError as error:
    raise argparse.ArgumentTypeError(str(error)) from error
  from matplotlib.backend_bases import FigureCanvasBase

  suffixes = FigureCanvasBase.get_supported_filetypes()
  path = pathlib.Path(text)
  if path.suffix.removeprefix(".") not in suffixes:
    raise argparse.ArgumentTypeError(
      f"{text} must end in one of {', '.join(f'.{s}' for s in sorted(suffixes))}"
    )
  if paths.is_remote(text):
    return text
  if path.is_dir() or not path.parent.is_dir():
    raise argparse.ArgumentTypeError(f"{text} must be a file in a folder that exists")
  if not os.access(path if path.exists() else path.parent, os.W_OK):
    raise argparse.ArgumentTypeError(f"{text} cannot be written; choose another place")
  return text


def import_pyplot() -> Any:
  """The module `matplotlib.pyplot`, which then needs no screen.

  Raises:
    ImportError: matplotlib is missing.
  """
  try:
    import matplotlib
  except ImportError as error:
    raise ImportError("Figures need matplotlib: pip install matplotlib") from error
  matplotlib.use("Agg")
  from matplotlib import pyplot

  return pyplot


def with_fonts(labels: Sequence[str]) -> tuple[list[str], list[str]]:
  """Labels as they can be drawn, and the families of fonts that have their characters.

  What no installed font has becomes its code point, such as "U+4E2D", with a warning.
  """
  from matplotlib import font_manager

  families = ["DejaVu Sans"]  # comes with matplotlib
  missing = set("".join(labels)) - _characters_of(font_manager.findfont(families[0]))
  for font in font_manager.fontManager.ttflist:
    if font.name.startswith("Last Resort"):  # has a box for each block of characters
      continue
    if missing and (found := missing & _characters_of(font.fname)):
      families.append(font.name)
      missing -= found
  if missing:
    logging.warning(
      "No installed font has %s: code points are drawn instead. Those of Noto have nearly all "
      "characters.",
      " ".join(sorted(missing)),
    )
  drawn = [f"U+{ord(text):04X}" if text in missing else text for text in labels]
  return drawn, families


def _characters_of(path: str) -> set[str]:
  """The characters of a font; none where matplotlib cannot draw it."""
  from matplotlib import font_manager

  try:
    return {chr(code) for code in font_manager.get_font(path).get_charmap()}
  except (OSError, RuntimeError):  # as of emoji in bitmaps
    return set()
