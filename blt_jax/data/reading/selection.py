"""Which files of a path are read, and as what."""

import collections
import os
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from absl import logging

from blt_jax.data.reading import saved
from blt_jax.data.reading.documents import BadInputError, Policy
from blt_jax.parallel import distributed
from blt_jax.storage import files

# In a folder of something else, a file of this format tells of that, or is a part of it.
_OFTEN_METADATA = "json"
_LIKE_TEXT = "json", "csv", "tsv"  # also common among plain text, such as source code
_TEST = re.compile(r"(?:^|[^a-z])(?:test|valid|validation|val|dev|heldout)(?:[^a-z]|$)")
_TRAIN = re.compile(r"(?:^|[^a-z])train(?:ing)?(?:[^a-z]|$)")


class Selection(NamedTuple):
  """Files of one format, and the others of the path."""

  paths: list[str]
  format: str
  others: list[str]


def select(path: str, policy: Policy) -> Selection:
  """The files to read; where there are shards, nothing but shards.

  Args:
    path: as for `files.list_files`.
    policy: what becomes of what cannot be read.

  Raises:
    FileNotFoundError: nothing is there.
    ValueError: formats that cannot be told apart, or bad input.
  """

  def reject(error: OSError) -> None:
    details = error.strerror or str(error)
    policy.reject(BadInputError("cannot be read", details), str(error.filename))

  note = policy.skipped.add
  found = files.list_files(path, reject, note)
  others: list[str] = []
  is_named = len(found) == 1 and os.path.basename(found[0]) == os.path.basename(path)
  if not is_named:  # whoever names a file means it
    try:
      found, others = saved.select(found, note)
    except BadInputError as error:
      policy.reject(error, path)
  kinds = {files.format_of(f) for f in found} - {"text"}
  if len(kinds) > 1 and not any(_is_packed(f, _OFTEN_METADATA) for f in found):
    kinds.discard(_OFTEN_METADATA)
  texts = [f for f in found if files.format_of(f) == "text"]
  clear = kinds - set(_LIKE_TEXT) or any(_is_packed(f, *_LIKE_TEXT) for f in found)
  if len(kinds) > 1 or (kinds and texts and not clear):
    _reject_mixture(path, found)
  kind = kinds.pop() if kinds else "text"
  read = [f for f in found if files.format_of(f) == kind]
  if kind == _OFTEN_METADATA and any(map(files.is_compressed, read)):
    read = [f for f in read if files.is_compressed(f)]
  return Selection(read, kind, others + sorted(set(found) - set(read)))


def _is_packed(path: str, *formats: str) -> bool:
  return files.is_compressed(path) and files.format_of(path) in formats


def _reject_mixture(path: str, found: Sequence[str]) -> None:
  formats = ", ".join(sorted(set(map(files.format_of, found))))
  ending = next(_ending(f) for f in found if files.format_of(f) != "text")
  raise ValueError(
    f"{path} holds files of several formats: {formats} ({_count(found)}). Say which with a "
    f"glob, such as 'folder/**/*{ending}'; a mixture takes several."
  )


def announce(path: str, selection: Selection) -> None:
  """Says what of a path is read, and what is not; of all processes the first one does."""
  if not distributed.is_lead():
    return
  read, kind, others = selection
  left = f"; left out are {len(others):,} others: {_count(others)}" if others else ""
  size = sum(files.sizes_of(read))
  logging.info(
    "%s: %s files of %s, %s bytes: %s%s.", path, f"{len(read):,}", kind, f"{size:,}",
    _count(read), left,
  )  # fmt: skip
  names = [os.path.basename(f).lower() for f in read]
  tests = [name for name in names if _TEST.search(name)]
  if tests and any(map(_TRAIN.search, names)):
    logging.warning(
      "%s: %s of the files that are read seem to be of a test split, such as %s. A glob "
      "leaves them out, and config.data.heldout_path may name them.",
      path, f"{len(tests):,}", tests[0],
    )  # fmt: skip


def _count(paths: Iterable[str]) -> str:
  """How many files have which endings, the most frequent first."""
  endings = collections.Counter(map(_ending, paths)).most_common()
  shown = ", ".join(f"{ending or 'no ending'} {count:,}" for ending, count in endings[:8])
  return f"{shown}, ..." if len(endings) > 8 else shown


def _ending(path: str) -> str:
  plain, ending = os.path.splitext(os.path.basename(path))
  return (os.path.splitext(plain)[1] if files.is_compressed(path) else "") + ending
