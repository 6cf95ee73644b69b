"""How all programs read their command line: options in one style, mistakes in one line."""

import argparse
import difflib
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

_WIDTH = 96
_PATHS = "PATH", "FOLDER", "FILE"  # metavars of options that take one


class Parser(argparse.ArgumentParser):
  """The options of a program.

  A mistake is one line, `error: ...`, and exit status 2. Names must be whole, so that a new
  option never changes what an old command means.
  """

  def __init__(self, name: str, doc: str | None):
    """Takes the program's name and its module's docstring, which --help shows.

    Args:
      name: as in `python -m blt_jax.NAME`.
      doc: what it does, and examples.
    """
    super().__init__(
      prog=f"python -m blt_jax.{name}",
      description=doc,
      formatter_class=_Formatter,
      allow_abbrev=False,
    )

  def format_usage(self) -> str:
    """What must be given; the other options stand below it in `--help`."""
    return f"usage: {self._usage()}\n"

  def format_help(self) -> str:
    """Usage, description and options."""
    self.usage = self._usage()
    return super().format_help()

  def parse_args(  # type: ignore[override]  # its overloads differ only in the namespace
    self, args: Sequence[str] | None = None, namespace: Any = None
  ) -> argparse.Namespace:
    """Reads the command line; what is unknown is an error that names the nearest option."""
    arguments = sys.argv[1:] if args is None else args
    self.check_names(arguments)
    parsed, unknown = self.parse_known_args(arguments, namespace)
    if unknown:
      self.error(f"{unknown[0]!r} belongs to no option. --help lists all.")
    for action in self._actions:
      is_path = (action.metavar or action.dest.upper()) in _PATHS
      if is_path and getattr(parsed, action.dest, None) == "":
        self.error(f"{action.option_strings[0]} is empty; give a path, or leave it out.")
    return parsed

  def check_names(self, arguments: Iterable[str]) -> None:
    """Ends the program at an unknown option, before others are missing because of it."""
    for argument in arguments:
      name = argument.partition("=")[0]
      if name.startswith("--") and name not in self._option_string_actions:
        hint = nearest(name, self._option_string_actions)
        self.error(f"There is no option {name}.{hint} --help lists all.")

  def error(self, message: str) -> NoReturn:
    """Ends the program with one line."""
    self.exit(2, f"error: {message}\n")

  def _usage(self) -> str:
    required = [a for a in self._actions if a.required]
    options = [f"{a.option_strings[0]}={a.metavar or a.dest.upper()}" for a in required]
    return " ".join([self.prog, *options, "[options]"])


def nearest(name: str, known: Iterable[str]) -> str:
  """A sentence that asks for the nearest known name, " Did you mean X?"; empty if none is."""
  found = difflib.get_close_matches(name, known, n=1)
  return f" Did you mean {found[0]}?" if found else ""


def parse_ascending(flag: str, text: str, most: int) -> list[int]:
  """Reads numbers with commas between them.

  Raises:
    ValueError: they are not ascending from 1 on, `most` at most.
  """
  numbers = [int(n) if n.strip().isdigit() else 0 for n in text.split(",")]
  if numbers != sorted(set(numbers)) or numbers[0] < 1 or numbers[-1] > most:
    raise ValueError(f"{flag} must be ascending numbers from 1 to {most}, got {text!r}.")
  return numbers


class _Formatter(argparse.RawDescriptionHelpFormatter):
  """Shows defaults in parentheses."""

  def __init__(self, prog: str):
    width = min(shutil.get_terminal_size().columns - 2, _WIDTH)
    super().__init__(prog, max_help_position=30, width=width)

  def _get_help_string(self, action: argparse.Action) -> str | None:
    is_value = isinstance(action.default, int | float | str) and action.nargs != 0
    shown = " (%(default)s)" if is_value and action.default != argparse.SUPPRESS else ""
    return f"{action.help or ''}{shown}"
