"""What a document is, and what becomes of one that is not as it should be."""

import collections
import dataclasses
import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import grain
import numpy as np
from absl import logging

from blt_jax.data.template import Template

_DETAILS = 400  # characters in an error; names of fields may be as long as a file
_NAMED = 3  # files in an error
_PATIENCE = 30  # times all elements; several processes may share them


@dataclasses.dataclass(frozen=True)
class Document:
  """Raw text, which need not be valid UTF-8, and what may be stored with it.

  Attributes:
    text: its bytes.
    entropies: what a source stores beside the text, in nats; None where it stores none.
    row: the fields of its row, where `SourceOptions.fields` asks for some; columns of a table
      that it does not ask for have no value. None where there are no rows.
    place: its file and its number there, where `SourceOptions.fields` asks for some.
    answers: int64 [n, 2], from which byte to which it is to be learned, in order; None where
      all of it is.
  """

  text: bytes
  entropies: np.ndarray | None = None
  row: Mapping[str, Any] | None = None
  place: str = ""
  answers: np.ndarray | None = None

  @property
  def num_learned(self) -> int:
    """Bytes that are to be learned."""
    return len(self.text) if self.answers is None else int(np.diff(self.answers).sum())


@dataclasses.dataclass(frozen=True)
class SourceOptions:
  """How files are read.

  Attributes:
    text_field: the field of a JSON object, or the column of a CSV, Parquet or Arrow file,
      with the text; dots lead into objects, "meta.body".
    on_error: "raise" stops at bad input; "skip" leaves it out and counts it.
    invalid_utf8: "keep" takes such documents as the bytes they are; "drop" leaves them out
      and counts them.
    max_document_bytes: plain text files longer than this become several documents, cut
      after a line where there is one. Other formats have documents of their own.
    fields: of rows that are kept beside their text; dots as in `text_field`.
    template: how prompts and answers become text; None where records have text.
    pictures: height, width and channels of pictures that are read instead of text; () for
      those of the first one. None where it is text.
  """

  text_field: str = "text"
  on_error: Literal["raise", "skip"] = "raise"
  invalid_utf8: Literal["keep", "drop"] = "keep"
  max_document_bytes: int = 65_536
  fields: tuple[str, ...] = ()
  template: Template | None = None
  pictures: tuple[int, ...] | None = None

  def __post_init__(self):
    if not self.text_field:
      raise ValueError("text_field is empty; it must name a field or a column.")
    if self.on_error not in ("raise", "skip"):
      raise ValueError(f"on_error is {self.on_error!r}; choose 'raise' or 'skip'.")
    if self.invalid_utf8 not in ("keep", "drop"):
      raise ValueError(f"invalid_utf8 is {self.invalid_utf8!r}; choose 'keep' or 'drop'.")
    if self.max_document_bytes < 4:  # the longest character of UTF-8
      raise ValueError(f"max_document_bytes must be 4 or more, got {self.max_document_bytes}.")
    if self.pictures is None:
      return
    if len(self.pictures) not in (0, 3) or min(self.pictures, default=1) < 1:
      raise ValueError(
        f"The size of pictures is {self.pictures}; give height, width and channels, each 1 or "
        "more, or () for that of the first picture."
      )
    if self.invalid_utf8 == "drop":
      raise ValueError("invalid_utf8=drop is of text, and would leave pictures out: keep it.")


Dataset: TypeAlias = grain.MapDataset[Document] | grain.IterDataset[Document]


class Skipped:
  """Counts what was left out of a source, by reason, and warns ever more rarely.

  A copy in another process counts for itself; what is read twice is counted twice.
  """

  def __init__(self, name: str = ""):
    """Takes the source's name, for warnings and errors."""
    self.name = name
    self.counts: collections.Counter[str] = collections.Counter()
    self._lock = threading.Lock()  # Grain reads ahead in threads

  def __reduce__(self) -> tuple[Any, ...]:
    return Skipped, (self.name,)

  def add(self, reason: str, where: str) -> None:
    """Counts one more; the 1st, 2nd, 4th, 8th, ... of a reason is logged."""
    with self._lock:
      self.counts[reason] += 1
      count = self.counts[reason]
    if count & (count - 1) == 0:
      logging.warning("Skipped %s: %s (%d so far).", self.locate(where), reason, count)

  def locate(self, where: str) -> str:
    """A place in the source, with the source's name."""
    return f"{self.name}: {where}" if self.name else where


class BadInputError(Exception):
  """A document or file cannot be used: a short reason to count by, and the details."""

  def __init__(self, reason: str, details: str = ""):
    super().__init__(reason, details)
    self.reason, self.details = reason, details


class Policy:
  """Decides about bad input as the options say, and counts what it leaves out."""

  def __init__(self, options: SourceOptions, skipped: Skipped):
    """Takes the options and where to count."""
    self.options = options
    self.skipped = skipped

  def admit(self, document: Document, where: str) -> Document | None:
    """The document, or None where its bytes are to be dropped, or are no whole picture."""
    size = self.options.pictures
    if size and len(document.text) != math.prod(size):
      details = f"{len(document.text)} bytes, and a picture has {math.prod(size)}"
      self.reject(BadInputError("no picture of the run's size", details), where)
      return None
    if self.options.invalid_utf8 == "drop" and not is_utf8(document.text):
      self.skipped.add("invalid UTF-8", where)
      return None
    return dataclasses.replace(document, place=where) if self.options.fields else document

  def reject(self, error: BadInputError, where: str) -> None:
    """Counts bad input, or raises.

    Raises:
      ValueError: always, where `on_error` is "raise".
    """
    if self.options.on_error == "skip":
      self.skipped.add(error.reason, where)
      return
    details = error.details[:_DETAILS] + "..." * (len(error.details) > _DETAILS)
    raise ValueError(
      f"{self.skipped.locate(where)}: {error.reason}{f' ({details})' if details else ''}. "
      "Mend it, or leave such input out with on_error=skip, in training config.data.on_error."
    ) from None


class Drought:
  """Ends what would look for a document for ever, in files where none is left."""

  def __init__(self, paths: Sequence[str]):
    """Takes the names of the files."""
    self._paths, self._barren = paths, 0

  def check(self, document: Document | None, size: int) -> Document | None:
    """Gives back what is read.

    Args:
      document: the next element.
      size: how many elements there are.

    Raises:
      ValueError: all were None for far longer than there are any.
    """
    self._barren = 0 if document is not None else self._barren + 1
    if self._barren > _PATIENCE * size:
      raise ValueError(
        "No document is left where there were some: files were changed meanwhile. They are "
        f"{name_files(self._paths)}; mend them, or leave them out."
      )
    return document


def name_files(paths: Sequence[str]) -> str:
  """The first of some files, for a message."""
  more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
  return ", ".join(paths[:_NAMED]) + more


def is_utf8(text: bytes) -> bool:
  """Whether bytes are valid UTF-8."""
  try:
    text.decode()
  except UnicodeDecodeError:
    return False
  return True
