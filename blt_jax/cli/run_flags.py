"""Flags of the programs that read a run: its folder, and which of its checkpoints."""

import argparse
import math
import pathlib
from collections.abc import Callable


def add(
  parser: argparse.ArgumentParser,
  what: str = "folder of the run",
  flag: str = "--run",
  several: bool = False,
) -> None:
  """Adds the flag of the folder, and `--step`.

  Args:
    parser: gets them.
    what: is in the folder, for --help.
    flag: of the folder.
    several: whether the flag may be given several times, for a list.
  """
  action = "append" if several else "store"
  parser.add_argument(
    flag, action=action, required=True, metavar="FOLDER", type=_folder_type(flag), help=what
  )
  parser.add_argument(
    "--step",
    type=_step,
    metavar="N|best",
    help="read the checkpoint of this step, or of the lowest held-out bits per byte; by "
    "default the newest",
  )


def add_entropies(parser: argparse.ArgumentParser, several: bool = False) -> None:
  """Adds the flags of what says where patches end, for programs that patch as a run does.

  Args:
    parser: gets them.
    several: whether there may be several thresholds, for a list.
  """
  parser.add_argument(
    "--entropy_model",
    metavar="FOLDER",
    help="of its run, or of a table, if not that of the training; or `head`, for the run's own "
    "boundary head, or `own`, for its own entropies",
  )
  parser.add_argument(
    "--threshold",
    type=numbers if several else float,
    metavar="N,..." if several else "N",
    help="of patches, if not that of the training, in nats; of a boundary head in log odds, by "
    "default 0" + ("; negative ones as --threshold=-1,0" if several else ""),
  )
  parser.add_argument(
    "--cumulative",
    action="store_true",
    help="the threshold is of the sum of entropies since the last patch began",
  )


def numbers(text: str) -> list[float]:
  """A type for argparse: finite numbers with commas between them."""
  try:
    found = [float(part) for part in text.split(",")]
  except ValueError:
    found = [math.nan]
  if not all(map(math.isfinite, found)):
    raise argparse.ArgumentTypeError(f"{text!r} must be numbers with commas between them")
  return found


def _step(text: str) -> int | str:
  if text == "best":
    return text
  if text.isascii() and text.isdigit():
    return int(text)
  raise argparse.ArgumentTypeError(f"{text!r} is neither the number of a step nor `best`.")


def _folder_type(flag: str) -> Callable[[str], str]:
  """A type for argparse: a folder that is not one of a checkpoint."""

  def folder(text: str) -> str:
    path = pathlib.PurePath(text)
    if path.parent.name == "checkpoints" and path.name.isdigit():
      run = text.rstrip("/").removesuffix(path.name).rstrip("/").removesuffix("/checkpoints")
      raise argparse.ArgumentTypeError(
        f"{text} is a checkpoint; give its run and its step: {flag}={run} --step={path.name}"
      )
    return text

  return folder
