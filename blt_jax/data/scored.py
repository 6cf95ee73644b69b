"""Documents stored with their entropies: ArrayRecord shards and what made them.

A folder holds `entropies.json`, what made the entropies; for each of the processes that
wrote it, shards `PP-NNNNN.array_record` with a `.json` beside each, written last; and
`PP-done.json` once that process has come to the end of the text. The folder is local or at
a URL that fsspec knows, such as gs://.
"""

import contextlib
import dataclasses
import itertools
import os
import pathlib
import struct
from collections.abc import Iterable, Iterator, Mapping
from concurrent import futures
from typing import Any

import grain
import numpy as np
from absl import logging
from array_record.python import array_record_module

from blt_jax.data import files
from blt_jax.data.documents import BadInputError, Document, Policy, Skipped, SourceOptions
from blt_jax.data.folders import Folder

_MANIFEST = "entropies.json"
_ENDS = "array_record", "json"  # of a shard, and of what stands beside it
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
    input_files: what tells its files from others, see `files.fingerprint`.
    text_field: where the text was in them.
    invalid_utf8: whether documents that are not UTF-8 were kept.
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
  input_files: str = ""
  text_field: str = "text"
  invalid_utf8: str = "keep"
  format: int = FORMAT


@dataclasses.dataclass(frozen=True)
class Progress:
  """How far a process has come.

  Attributes:
    num_shards: shards written.
    next_document: the first document, in the order of its own ones, of the next shard.
    documents: number of documents written.
    text_bytes: bytes of text in them.
    skipped: reason -> how many documents before the next one were left out.
  """

  num_shards: int = 0
  next_document: int = 0
  documents: int = 0
  text_bytes: int = 0
  skipped: dict[str, int] = dataclasses.field(default_factory=dict)


def is_scored(path: str | os.PathLike) -> bool:
  """Whether a path is such a folder."""
  return Folder(path).exists(_MANIFEST)


def load_manifest(folder: str | os.PathLike) -> Manifest:
  """Reads what made a folder of entropies.

  Raises:
    ValueError: the folder was written by another version, or its manifest is damaged.
  """
  fields = Folder(folder).read_json(_MANIFEST)
  if fields.get("format") != FORMAT:
    raise ValueError(
      f"{folder} has entropies of format {fields.get('format')}, this version reads "
      f"{FORMAT}; score the text again (python -m blt_jax.score_entropies)."
    )
  try:
    return Manifest(**fields)
  except TypeError as error:
    raise ValueError(f"{folder}/{_MANIFEST} is damaged: {error}.") from error


def begin(folder: str | os.PathLike, manifest: Manifest) -> None:
  """Starts or goes on with a folder.

  Raises:
    ValueError: the folder holds entropies that something else made, or other files.
    OSError: it cannot be written.
  """
  home, new = Folder(folder), dataclasses.asdict(manifest)
  home.make()
  names = [n for n in home.sizes() if not n.startswith(".") and not n.endswith(".partial")]
  if names and _MANIFEST not in names:
    raise ValueError(
      f"{folder} holds other files, such as {names[0]}; choose an empty folder for --output."
    )
  if not names:
    home.write_json(_MANIFEST, new)
    return
  old = dataclasses.asdict(load_manifest(folder))
  changed = [f"{k} {old[k]!r}, now {new[k]!r}" for k in new if old[k] != new[k]]
  if changed:
    raise ValueError(
      f"{folder} holds entropies made otherwise: {'; '.join(changed)}. Choose another "
      "--output, or remove the folder."
    )


def go_on(folder: str | os.PathLike, process: int) -> Progress:
  """How far process number `process` came; removes what it left unfinished.

  Where a shard is missing or damaged, those after it go as well: they are made again.
  """
  home = Folder(folder)
  sizes = home.sizes()
  if _done_name(process) in sizes:
    flaw = _find_flaw(home, sizes, process)
    logging.warning("%s: %s; it and those after it are made again.", folder, flaw)
  whole = _whole_shards(home, sizes, process)
  kept = {f"{_shard_name(process, i)}.{end}" for i in range(len(whole)) for end in _ENDS}
  for name in sizes:
    if name.startswith(f"{process:02d}-") and name not in kept:
      home.remove(name)
  last = whole[-1] if whole else {}
  names = last.keys() & {f.name for f in dataclasses.fields(Progress)}
  return Progress(**{name: last[name] for name in names})


def is_done(folder: str | os.PathLike, process: int) -> bool:
  """Whether a process has come to the end of the text, and all its shards are there."""
  home = Folder(folder)
  return not _find_flaw(home, home.sizes(), process)


def mark_done(folder: str | os.PathLike, process: int, facts: dict[str, Any]) -> None:
  """Notes that a process has come to the end of the text."""
  Folder(folder).write_json(_done_name(process), facts)


def _find_flaw(home: Folder, sizes: Mapping[str, int], process: int) -> str:
  """What is missing of the work of a process; empty where nothing is."""
  if _done_name(process) not in sizes:
    return f"process {process} has not come to the end"
  count = len(_whole_shards(home, sizes, process))
  if count != _read_facts(home, _done_name(process)).get("num_shards"):
    return f"{_shard_name(process, count)}.array_record is missing or damaged"
  return ""


def _whole_shards(home: Folder, sizes: Mapping[str, int], process: int) -> list[dict[str, Any]]:
  """What stands beside the shards of a process, from the first on while they are whole."""
  names = (_shard_name(process, i) for i in itertools.count())
  pairs = (tuple(f"{name}.{end}" for end in _ENDS) for name in names)
  there = list(itertools.takewhile(lambda pair: sizes.keys() >= set(pair), pairs))
  with futures.ThreadPoolExecutor(8) as pool:  # remote files take their time
    facts = list(pool.map(lambda pair: _read_facts(home, pair[1]), there))
  sized = zip(facts, (sizes[shard] for shard, _ in there), strict=True)
  whole = itertools.takewhile(lambda pair: pair[0].get("file_bytes") == pair[1], sized)
  return [beside for beside, _ in whole]


def _read_facts(home: Folder, name: str) -> dict[str, Any]:
  """What a file says; nothing where it is damaged, so that it is made again."""
  try:
    return home.read_json(name)
  except ValueError:
    return {}


def _shard_name(process: int, number: int) -> str:
  return f"{process:02d}-{number:05d}"


def _done_name(process: int) -> str:
  return f"{process:02d}-done.json"


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
  name = _shard_name(process, progress.num_shards - 1)
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
      raise OSError("it was cut short")
  finally:
    reader.close()
  return count


@contextlib.contextmanager
def _explaining(path: pathlib.Path) -> Iterator[None]:
  """Says what an error of writing means."""
  try:
    yield
  except (OSError, RuntimeError) as error:
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

  def __init__(self, folder: str | os.PathLike, policy: Policy | None = None):
    """Opens a folder; the shards of a remote one are copied, see `files.copy_here`.

    Args:
      folder: the folder.
      policy: what happens to records that cannot be read; None raises.

    Raises:
      FileNotFoundError: there is no manifest.
      ValueError: scoring has not finished, or shards are damaged.
    """
    super().__init__()
    self._folder = str(folder)
    self._policy = policy or Policy(SourceOptions(), Skipped())
    if not is_scored(folder):
      raise FileNotFoundError(
        f"{folder} holds no stored entropies (no {_MANIFEST}); make them with python -m "
        "blt_jax.score_entropies, or choose another config.patching.entropies."
      )
    self.manifest = load_manifest(folder)
    shards = _find_shards(Folder(folder), self.manifest.num_processes)
    self._source = grain.sources.ArrayRecordDataSource(shards)

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index):
    if isinstance(index, slice):
      return self.slice(index)
    index %= len(self)  # later epochs
    where = f"{self._folder}, record {index}"
    try:
      document = decode(self._source[index], self.manifest.entropy_dtype)
    except (OSError, RuntimeError, ValueError, struct.error) as error:
      self._policy.reject(BadInputError("cannot be read", str(error)), where)
      return None
    return self._policy.admit(document, where)

  def __str__(self) -> str:
    return f"ScoredReader({self._folder!r})"


def _find_shards(folder: Folder, num_processes: int) -> list[str]:
  """Local paths of all shards, copied side by side."""
  sizes = folder.sizes()
  flaws = [flaw for p in range(num_processes) if (flaw := _find_flaw(folder, sizes, p))]
  if flaws:
    raise ValueError(
      f"{folder} is not finished: {'; '.join(flaws)}. Run the same score_entropies again, it "
      "makes what is missing."
    )
  counts = [_read_facts(folder, _done_name(p))["num_shards"] for p in range(num_processes)]
  names = [_shard_name(p, i) for p, count in enumerate(counts) for i in range(count)]
  paths = [folder.path_of(f"{name}.{_ENDS[0]}") for name in names]
  with futures.ThreadPoolExecutor(8) as pool:
    return list(pool.map(_open_shard, paths))


def _open_shard(path: str) -> str:
  """A local path of a shard that is a file of records."""
  here = files.copy_here(path)
  try:
    grain.sources.ArrayRecordDataSource([here])
  except (OSError, RuntimeError) as error:
    raise ValueError(
      f"{path} is damaged: {error}. Remove it, and run the same score_entropies again, it "
      "makes what is missing."
    ) from None
  return here
