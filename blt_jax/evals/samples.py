"""A few rows of each task, which come with the package for a first try."""

import pathlib

NAME = "sample"
FOLDER = pathlib.Path(__file__).parent / NAME


def locate(data: str) -> str:
  """The folder that is meant: "sample" is that of the package."""
  return str(FOLDER) if data == NAME else data
