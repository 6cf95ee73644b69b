"""Short names that tell paths apart."""

import pathlib
from collections.abc import Sequence


def shorten(paths: Sequence[str]) -> list[str]:
  """The ends of paths, as short as tells them apart, fit for names of folders."""
  split, found = [parts(path) for path in paths], list(paths)
  for count in range(1, max(map(len, split), default=0) + 1):
    found = ["-".join(p[-count:]).replace("/", "") or "root" for p in split]
    if len(set(found)) == len(found):
      return found
  return [f"{label}-{number}" for number, label in enumerate(found, 1)]


def parts(path: str) -> tuple[str, ...]:
  """Its names, without those that mean nothing."""
  return pathlib.PurePath(path).parts
