"""Folders that Hugging Face `datasets` saved: which of their files hold documents."""

import posixpath
from collections.abc import Callable, Sequence
from typing import Any

from blt_jax.data.reading.documents import BadInputError
from blt_jax.storage import files

_SPLITS, _STATE = "dataset_dict.json", "state.json"
# Files that tell of data and hold none.
_METADATA = _SPLITS, "dataset_info.json", "dataset_infos.json"
_TRAIN = "train"


def select(
  found: Sequence[str], leave_out: Callable[[str, str], None]
) -> tuple[list[str], list[str]]:
  """Takes out of the files of a path what is to be read of saved datasets.

  Of several splits that is the one called "train"; another one is read by its own folder. Of
  a folder's Arrow files, those that its `state.json` lists: others are caches.

  Args:
    found: all files.
    leave_out: takes why a split or a file is left out, and its path.

  Returns:
    The files to read, as far as datasets say, and those that hold metadata.

  Raises:
    BadInputError: no split is called so, a file is missing, or one that tells is damaged.
  """
  kept = list(found)
  for path in found:
    if posixpath.basename(path) == _SPLITS:
      kept = _choose_split(kept, path, leave_out)
  states = [p for p in kept if posixpath.basename(p) == _STATE]
  for path in states:
    kept = _keep_listed(kept, path, leave_out)
  homes = {posixpath.dirname(p) for p in kept if files.format_of(p) == "arrow"}
  metadata = [
    p for p in kept
    if posixpath.basename(p) in _METADATA or (p in states and posixpath.dirname(p) in homes)
  ]  # fmt: skip
  return [p for p in kept if p not in set(metadata)], metadata


def _choose_split(
  kept: list[str], path: str, leave_out: Callable[[str, str], None]
) -> list[str]:
  home = posixpath.dirname(path)
  splits = _read(path).get("splits")
  if not (isinstance(splits, list) and splits and all(isinstance(s, str) for s in splits)):
    raise BadInputError("damaged", f"{path} lists no splits")
  if len(splits) > 1 and _TRAIN not in splits:
    names = ", ".join(f"{home}/{name}" for name in splits)
    raise BadInputError("several splits", f"give the folder of one: {names}")
  chosen = splits[0] if len(splits) == 1 else _TRAIN
  for name in splits:
    if name != chosen:
      leave_out(f"not the split {chosen!r} of this dataset", f"{home}/{name}")
  others = tuple(f"{home}/{name}/" for name in splits if name != chosen)
  return [p for p in kept if not p.startswith(others)]


def _keep_listed(
  kept: list[str], path: str, leave_out: Callable[[str, str], None]
) -> list[str]:
  home, entries = posixpath.dirname(path), _read(path).get("_data_files")
  if entries is None:  # of somebody else
    return kept
  try:
    listed = [f"{home}/{entry['filename']}" for entry in entries]
  except (TypeError, KeyError) as error:
    raise BadInputError("damaged", f"{path} lists no files") from error
  if missing := [p for p in listed if p not in kept]:
    raise BadInputError("a file is missing", f"{path} lists {missing[0]}")
  for name in kept:
    is_beside = posixpath.dirname(name) == home and files.format_of(name) == "arrow"
    if is_beside and name not in listed:
      leave_out(f"no data file of this dataset, as its {_STATE} says", name)
  return [
    p for p in kept
    if p in listed or posixpath.dirname(p) != home or files.format_of(p) != "arrow"
  ]  # fmt: skip


def _read(path: str) -> dict[str, Any]:
  try:
    return files.read_json(path)
  except ValueError as error:
    raise BadInputError("damaged", str(error)) from error
