"""The text that bits per byte are measured on: data sets by name, opened and looked through."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from blt_jax.cli.parsing import nearest
from blt_jax.data.reading import fields, sources
from blt_jax.data.reading.documents import Dataset, Document, SourceOptions
from blt_jax.evals import labels
from blt_jax.storage import files, paths, unique_names

HELDOUT = "heldout"  # the path that means the text which a run held out
_NAMED = 10  # fields in an error


Heldout = Mapping[str, tuple[str, Dataset]]


class Size(NamedTuple):
  """Of a source: documents, their bytes that count, and the bytes of the longest one.

  `lacking` has the fields that no row has a value in, and what to say of it.
  """

  documents: int
  bytes: int
  longest: int
  lacking: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Source:
  """A data set, or a source of a mixture.

  Attributes:
    name: that tells it from the others.
    path: of its files; of what a run held out, of all its text.
    documents: in order.
    options: how they are read.
  """

  name: str
  path: str
  documents: Dataset
  options: SourceOptions

  @functools.cached_property
  def files(self) -> list[str]:
    """Those that are read."""
    return sources.list_files(self.path, self.options)

  @property
  def fingerprint(self) -> str:
    """What tells the files from others, see `files.fingerprint`."""
    return files.fingerprint(self.files)

  def read(self) -> Iterator[Document]:
    """All documents, one after the other."""
    return sources.each_document(self.documents)

  def measure(self, most: float, report: Callable[[int], None]) -> Size:
    """Reads the text, and looks for the fields that are asked for.

    Args:
      most: bytes after which it stops.
      report: told how many bytes are read.

    Raises:
      ValueError: there is no text.
    """
    count = size = longest = 0
    first: Document | None = None
    missing = set(self.options.fields)
    for document in self.read():
      first = first or document
      count, size = count + 1, size + document.num_learned
      longest = max(longest, len(document.text))
      report(size)
      missing -= {name for name in missing if value_of(document.row or {}, name) is not None}
      if size >= most:
        break
    if not size:
      raise ValueError(f"All {count:,} documents of {self.path} are empty; give some text.")
    lacking = {name: self._tell_lack(first, count, name) for name in sorted(missing)}
    return Size(count, size, longest, lacking)

  def _tell_lack(self, first: Document | None, count: int, name: str) -> str:
    if first is None or first.row is None:
      return (
        f"--by={name} goes with rows that have fields, of JSON, CSV, Parquet or Arrow; the "
        f"text of {self.path} has none."
      )
    known = ", ".join(map(repr, list(first.row)[:_NAMED]))
    return (
      f"No row of {self.path} has a value in the field {name!r} (--by), of {count:,} that are "
      f"read; {first.place}, has {known}.{nearest(name, first.row)}"
    )


def value_of(row: Mapping[str, Any], name: str) -> str | None:
  """The value of a field as a text; None where there is none, or null, or several."""
  try:
    value = fields.look_up(row, name)
  except KeyError:
    return None
  if value is unique_names.SEVERAL:
    return None
  if value is None or isinstance(value, str):
    return value
  return json.dumps(value, ensure_ascii=False, default=str)


def open_all(
  data: Sequence[str],
  options: SourceOptions,
  open_heldout: Callable[[SourceOptions], Heldout],
) -> list[Source]:
  """Opens data sets.

  Args:
    data: paths as for `sources.open_source`, or `HELDOUT`.
    options: how files are read.
    open_heldout: opens what a run held out: name -> path and documents of each source.

  Raises:
    FileNotFoundError: nothing is at a path.
    ValueError: two are the same, or bad input.
  """
  for path in data:
    if "," in path and not set("*?[") & set(path) and not paths.exists(path):
      raise FileNotFoundError(f"No file or folder {path}; give --data once for each data set.")
  same = [path if path in (HELDOUT, files.STDLIB) else paths.absolute(path) for path in data]
  for place, path in enumerate(same):
    if path in same[:place]:
      raise ValueError(f"--data={data[place]} is given twice; give each data set once.")
  found = []
  for name, path in zip(labels.shorten(data), data, strict=True):
    if path == HELDOUT:
      found += _name_heldout(open_heldout(options), options)
    else:
      found.append(_open(name, path, options))
  return found


def _open(name: str, path: str, options: SourceOptions) -> Source:
  return Source(name, path, sources.open_source(path, options), options)


def _name_heldout(found: Heldout, options: SourceOptions) -> list[Source]:
  """What a run held out, source by source."""
  return [
    Source(HELDOUT if len(found) == 1 else f"{HELDOUT}/{name}", path, dataset, options)
    for name, (path, dataset) in found.items()
  ]
