"""Documents stored with their entropies: ArrayRecord shards and what made them.

A folder holds `entropies.json`, what made the entropies; for each of the processes that
wrote it, shards `PP-NNNNN.array_record` with a `.json` beside each, written last; and
`PP-done.json` once that process has come to the end of the text. The folder is local or at
a URL that fsspec knows, such as gs://.
"""

import contextlib
import dataclasses
import fnmatch
import os
import pathlib
import struct
from collections.abc import Iterable, Iterator
from concurrent import futures
from typing import Any

import grain
import numpy as np
from array_record.python import array_record_module

from blt_jax.data import files
from blt_jax.data.documents import Document
from blt_jax.data.folders import Folder

_MANIFEST = "entropies.json"
_HEADER = struct.Struct("<Q")  # bytes of text; text and entropies follow
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Manifest:
  """What made a folder of entropies; they belong together only if all of it is equal.

  Attributes:
    model: folder of the entropy model's run.
    step: of its checkpoint.
    digest: of its parameters.
    window: bytes that its attention sees.
    compute_dtype: of its activations.
    entropy_dtype: of the entropies as stored, "float16" or "float32".
    reset_at_newline: the context begins anew after each newline byte.
    input: path of the text.
    num_processes: that share the work.
    format: version of the layout of the folder.
  """

  model: str
  step: int
  digest: str
  window: int
  compute_dtype: str
  entropy_dtype: str
  reset_at_newline: bool
  input: str
  num_processes: int
  format: int = FORMAT


@dataclasses.dataclass(frozen=True)
class Progress:
  """How far a process has come.

  Attributes:
    num_shards: shards written.
    next_document: the first document, in the order of its own ones, of the next shard.
    documents: number of documents written.
    text_bytes: bytes of text in them.
  """

  num_shards: int = 0
  next_document: int = 0
  documents: int = 0
  text_bytes: int = 0


def is_scored(path: str | os.PathLike) -> bool:
  """Whether a path is such a folder."""
  return Folder(path).exists(_MANIFEST)


def load_manifest(folder: str | os.PathLike) -> Manifest:
  """Reads what made a folder of entropies.

  Raises:
    ValueError: the folder was written by another version.
  """
  fields = Folder(folder).read_json(_MANIFEST)
  if fields.get("format") != FORMAT:
    raise ValueError(
      f"{folder} has entropies of format {fields.get('format')}, this version reads "
      f"{FORMAT}; score the text again (python -m blt_jax.score_entropies)."
    )
  return Manifest(**fields)


def begin(folder: str | os.PathLike, manifest: Manifest) -> None:
  """Starts or goes on with a folder.

  Raises:
    ValueError: the folder holds entropies that something else made.
  """
  home, new = Folder(folder), dataclasses.asdict(manifest)
  home.make()
  if not home.exists(_MANIFEST):
    home.write_json(_MANIFEST, new)
    return
  old = dataclasses.asdict(load_manifest(folder))
  changed = [f"{k} {old[k]!r}, now {new[k]!r}" for k in new if old[k] != new[k]]
  if changed:
    raise ValueError(
      f"{folder} holds entropies made otherwise: {'; '.join(changed)}. Choose another "
      "--output, or remove the folder."
    )


def find_progress(folder: str | os.PathLike, process: int) -> Progress:
  """How far process number `process` came; what it left unfinished does not count."""
  home = Folder(folder)
  sidecars = fnmatch.filter(home.names(), f"{process:02d}-[0-9]*.json")
  if not sidecars:
    return Progress()
  fields = home.read_json(sidecars[-1])
  return Progress(**{f.name: fields[f.name] for f in dataclasses.fields(Progress)})


def is_done(folder: str | os.PathLike, process: int) -> bool:
  """Whether a process has come to the end of the text."""
  return Folder(folder).exists(f"{process:02d}-done.json")


def mark_done(folder: str | os.PathLike, process: int, facts: dict[str, Any]) -> None:
  """Notes that a process has come to the end of the text."""
  Folder(folder).write_json(f"{process:02d}-done.json", facts)


def write_shard(
  folder: str | os.PathLike,
  process: int,
  documents: Iterable[Document],
  entropy_dtype: str,
  progress: Progress,
) -> None:
  """Writes the next shard of a process; `progress` is how far it has come with it.

  Raises:
    OSError: the disk is full, or another error of writing; earlier shards stay as they are.
  """
  name = f"{process:02d}-{progress.num_shards - 1:05d}"
  home = Folder(folder)
  with home.new_file(f"{name}.array_record") as path, _explaining(path):
    count = _write_records(path, (encode(d, entropy_dtype) for d in documents))
    facts = {"records": count, "file_bytes": path.stat().st_size}
  home.write_json(f"{name}.json", facts | dataclasses.asdict(progress))


def _write_records(path: pathlib.Path, records: Iterable[bytes]) -> int:
  """Writes a file and looks whether all of it is there."""
  # Entropies hardly shrink: files a third smaller would take three times as long to read.
  writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
  count = 0
  try:
    for record in records:
      writer.write(record)
      count += 1
  finally:
    writer.close()
  reader = array_record_module.ArrayRecordReader(str(path))
  try:
    if reader.num_records() != count:
      raise OSError(f"{path} was not written whole; is the disk full?")
  finally:
    reader.close()
  return count


@contextlib.contextmanager
def _explaining(path: pathlib.Path) -> Iterator[None]:
  """Turns an error of the library that writes records into an OSError."""
  try:
    yield
  except RuntimeError as error:
    raise OSError(
      f"{path} cannot be written: {error}. Check free space and permissions; shards before it "
      "are whole, and the same command goes on after them."
    ) from error


def encode(document: Document, entropy_dtype: str) -> bytes:
  """A document as a record."""
  entropies = np.asarray(document.entropies, entropy_dtype).tobytes()
  return b"".join((_HEADER.pack(len(document.text)), document.text, entropies))


def decode(record: bytes, entropy_dtype: str) -> Document:
  """A record as a document; its entropies are for BOS, each byte, and EOS.

  Raises:
    ValueError: lengths that do not fit.
  """
  (size,) = _HEADER.unpack_from(record)
  text = record[_HEADER.size : _HEADER.size + size]
  entropies = np.frombuffer(record, entropy_dtype, offset=_HEADER.size + len(text))
  if len(text) != size or len(entropies) != size + 2:
    raise ValueError(
      f"a record has {len(text)} bytes of text and {len(entropies)} entropies, it should "
      f"have {size} and {size + 2}; score the text again"
    )
  return Document(text, entropies)


class ScoredReader(grain.MapDataset[Document]):
  """Random access to the documents of a folder, in no particular order of the input."""

  def __init__(self, folder: str | os.PathLike):
    """Opens a folder; the shards of a remote one are copied, see `files.copy_here`.

    Raises:
      FileNotFoundError: there is no manifest.
      ValueError: scoring has not finished, or shards are damaged.
    """
    super().__init__()
    self._folder = str(folder)
    if not is_scored(folder):
      raise FileNotFoundError(
        f"{folder} holds no stored entropies (no {_MANIFEST}); make them with python -m "
        "blt_jax.score_entropies, or choose another config.patching.entropies."
      )
    self.manifest = load_manifest(folder)
    missing = [p for p in range(self.manifest.num_processes) if not is_done(folder, p)]
    if missing:
      raise ValueError(
        f"{folder} is not finished: of {self.manifest.num_processes} processes, {missing} "
        "have not come to the end; run score_entropies again, it goes on where it stopped."
      )
    self._source = grain.sources.ArrayRecordDataSource(_open_shards(Folder(folder)))

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index):
    if isinstance(index, slice):
      return self.slice(index)
    index %= len(self)  # later epochs
    try:
      return decode(self._source[index], self.manifest.entropy_dtype)
    except (ValueError, struct.error) as error:
      raise ValueError(f"{self}, record {index}: {error}.") from error

  def __str__(self) -> str:
    return f"ScoredReader({self._folder!r})"


def _open_shards(folder: Folder) -> list[str]:
  """Local paths of all shards, looked at and copied side by side."""
  shards = fnmatch.filter(folder.names(), "*.array_record")
  with futures.ThreadPoolExecutor(8) as pool:
    return list(pool.map(lambda name: _open_shard(folder, name), shards))


def _open_shard(folder: Folder, name: str) -> str:
  size = folder.size(name)
  expected = folder.read_json(name.replace(".array_record", ".json"))["file_bytes"]
  if size != expected:
    raise ValueError(
      f"{folder.path_of(name)} has {size:,} bytes, it was written with {expected:,}: it is "
      "damaged. Remove it and its .json, and those after it of the same process, and run "
      "score_entropies again."
    )
  return files.copy_here(folder.path_of(name))
