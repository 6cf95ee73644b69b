"""Where documents come from: any path of any format to a dataset of documents."""

import dataclasses
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import grain

from blt_jax.data.reading import (
  arrow,
  heldout,
  parquet,
  pictures,
  readers,
  scored,
  selection,
  streams,
)
from blt_jax.data.reading.documents import (
  Dataset,
  Document,
  Policy,
  Skipped,
  SourceOptions,
)
from blt_jax.storage import files, paths

Reader: TypeAlias = readers.Reader | scored.ScoredReader | streams.RecordStream

_READERS: dict[str, Callable[[Sequence[str], Policy], Reader]] = {
  "text": readers.TextReader,
  "jsonl": readers.JsonLinesReader,
  "json": streams.RecordStream,
  "csv": streams.RecordStream,
  "tsv": streams.RecordStream,
  "parquet": parquet.ParquetReader,
  "arrow": arrow.ArrowReader,
  "array_record": readers.ArrayRecordReader,
}
# Threads that read ahead cost more per document than reading it from a disk.
_READ = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
_HELD_OUT_PIECE = 4096  # bytes; of a single file, pieces are held out


def open_source(
  path: str, options: SourceOptions | None = None, skipped: Skipped | None = None
) -> Dataset:
  """Opens the documents of a path.

  Formats by name: .jsonl (.ndjson), .json (lines, or an array of objects), .csv, .tsv, each
  also .gz, .zst, .xz; .parquet, .arrow, .array_record (.arrayrecord); anything else is plain
  text, a document a file. Documents that are empty stay, since somebody wrote them down as
  documents; blank text files and blank lines are none.

  Args:
    path: a file; a folder, of which files at any depth are taken, hidden ones aside, and
      of shards and other files only the shards; a glob; or "stdlib", the Python standard
      library; of pictures also a name of `pictures.SETS`. Local, or a URL that fsspec knows,
      such as gs://; remote shards of Arrow and ArrayRecord are copied whole, see
      `files.copy_here`.
    options: how files are read, and whether they are pictures.
    skipped: counts what is left out; its name appears in errors and warnings.

  Returns:
    A MapDataset of `Document` where random access is fast; an IterDataset for Parquet,
    JSON, CSV, and for compressed or remote JSONL. Elements of a MapDataset may be None, as
    Grain has it: skip them.

  Raises:
    FileNotFoundError: nothing is there.
    ValueError: bad input, no document at all, shards of several formats, or a library that
      is not installed.
  """
  reader = _open(path, options or SourceOptions(), skipped or Skipped())
  return _in_order(reader, reader)


def open_split(
  path: str,
  heldout_fraction: float,
  options: SourceOptions | None = None,
  skipped: Skipped | None = None,
  salt: str = heldout.SALT,
) -> tuple[Dataset, Dataset]:
  """Opens (training, held-out) documents, and says what share is held out.

  They are divided by their content: whole files of plain text, or pieces where there is a
  single file.

  Args:
    path: see `open_source`.
    heldout_fraction: how many documents to hold out, in [0, 1].
    options: see `open_source`.
    skipped: see `open_source`.
    salt: see `heldout.hold_out`.

  Raises:
    FileNotFoundError: nothing is there.
    ValueError: as `open_source`, or too little to hold some out.
  """
  options, skipped = options or SourceOptions(), skipped or Skipped()
  reader = _open(path, options, skipped)
  if isinstance(reader, streams.RecordStream):
    return heldout.hold_out_of_stream(reader, heldout_fraction, salt, path)
  file_ids = reader.file_ids if isinstance(reader, readers.TextReader) else None
  if file_ids is not None and file_ids[0] == file_ids[-1]:
    size = min(options.max_document_bytes, _HELD_OUT_PIECE)
    policy = Policy(dataclasses.replace(options, max_document_bytes=size), skipped)
    reader = readers.TextReader(selection.select(path, policy).paths, policy)
    file_ids = None
  train, held = heldout.hold_out(reader, heldout_fraction, file_ids, salt, path)
  return _in_order(train, reader), _in_order(held, reader)


def _open(path: str, options: SourceOptions, skipped: Skipped) -> Reader:
  policy = Policy(options, skipped)
  if scored.is_scored(path):
    reader: Reader = scored.ScoredReader(path, policy)
  elif options.pictures is not None:
    chosen = pictures.select(path, policy)
    selection.announce(path, chosen)
    reader = pictures.PictureReader(chosen.paths, policy)
  else:
    chosen = selection.select(path, policy)
    _check_support(path, chosen.format)
    _check_fields(path, chosen.format, options)
    _check_no_scored(chosen.paths, chosen.format)
    selection.announce(path, chosen)
    reader = _reader_of(chosen)(chosen.paths, policy)
  _check_any(reader, path, skipped)
  return reader


def _reader_of(chosen: selection.Selection) -> Callable[[Sequence[str], Policy], Reader]:
  """Lines have random access where all of them lie plainly on a disk."""
  is_plain = not any(files.is_compressed(f) or paths.is_remote(f) for f in chosen.paths)
  has_lines = chosen.format == "jsonl"
  return _READERS[chosen.format] if is_plain or not has_lines else streams.RecordStream


def _in_order(dataset: Dataset, reader: Reader) -> Dataset:
  """A stream where nothing else is fast, so that nobody shuffles it globally."""
  if isinstance(reader, parquet.ParquetReader) and isinstance(dataset, grain.MapDataset):
    return dataset.to_iter_dataset(_READ)
  return dataset


def fingerprint(path: str, options: SourceOptions | None = None) -> str:
  """A text that tells the files of a path from others, see `files.fingerprint`."""
  return files.fingerprint(list_files(path, options))


def list_files(path: str, options: SourceOptions | None = None) -> list[str]:
  """The files that are read of a path; of stored entropies the shards."""
  if scored.is_scored(path):
    return [name for name in files.list_files(path) if not name.endswith(".json")]
  skipping = Policy(SourceOptions(on_error="skip"), Skipped())
  is_text = options is None or options.pictures is None
  return (selection if is_text else pictures).select(path, skipping).paths


def _check_support(path: str, kind: str) -> None:
  if kind in ("parquet", "arrow") and importlib.util.find_spec("pyarrow") is None:
    raise ValueError(f"{path}: reading {kind} needs pyarrow: pip install blt_jax[parquet]")


def _check_fields(path: str, kind: str, options: SourceOptions) -> None:
  if options.template is not None and kind in ("text", "array_record"):
    what = "plain text" if kind == "text" else "ArrayRecord"
    raise ValueError(
      f"{path} is {what}, and data.format=answers reads records with fields: JSON, CSV, "
      "Parquet or Arrow. Give such files, or data.format=text."
    )


def _check_no_scored(found: Sequence[str], kind: str) -> None:
  """Records that are text and entropies are no text, nor would anything else tell."""
  folders = {p.rpartition("/")[0] for p in found} if kind == "array_record" else set()
  if scored_folders := sorted(filter(scored.is_scored, folders)):
    raise ValueError(f"{scored_folders[0]} holds stored entropies; give that folder itself.")
  if lost := sorted(filter(scored.has_lost_manifest, folders)):
    raise ValueError(
      f"{lost[0]} holds stored entropies, and its entropies.json is missing; put it back, or "
      "score the text again."
    )


def _check_any(reader, path: str, skipped: Skipped) -> None:
  """Reads up to the first document: most mistakes show before anything else starts."""
  before = skipped.counts.copy()
  if next(each_document(reader), None) is None:
    reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.counts.items())
    raise ValueError(
      f"{skipped.locate(path)} holds no text{f' (left out: {reasons})' if reasons else ''}; "
      "give a file of text, JSON, CSV, Parquet, Arrow or ArrayRecord, or a folder of them."
    )
  skipped.counts = before  # it will be read again


def each_document(source: Dataset | Reader) -> Iterator[Document]:
  """All documents in order."""
  is_stream = isinstance(source, grain.IterDataset)
  elements = source if is_stream else (source[index] for index in range(len(source)))
  return (document for document in elements if document is not None)


def stream_documents(
  path: str, options: SourceOptions | None = None, max_bytes: int | None = None
) -> Iterator[bytes]:
  """Reads documents one after the other, none of them empty; see `open_source`.

  Args:
    path: where they are.
    options: how files are read.
    max_bytes: read no more; the last document is cut. None reads all.
  """
  room = sys.maxsize if max_bytes is None else max_bytes
  for document in each_document(open_source(path, options)):
    if room < 1:
      break
    if document.text:
      yield document.text[:room]
      room -= len(document.text)


def read_documents(
  path: str, options: SourceOptions | None = None, max_bytes: int | None = None
) -> list[bytes]:
  """Reads documents into memory; see `stream_documents`."""
  return list(stream_documents(path, options, max_bytes))
