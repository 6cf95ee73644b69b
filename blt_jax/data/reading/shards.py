"""Shards of documents with their entropies, and how far those who write them have come.

Process number PP writes `PP-NNNNN.array_record` and after each of them a `.json` of the
same name, and `PP-done.json` once it has come to the end of the text. A record holds the
length of a text, the text, its entropies, where its answers are if it is one of prompts and
answers, and a checksum of these that begins with the shard's seed, so that no other record
passes for it. Shards of before there were checksums
have no seed.
"""

import dataclasses
import itertools
import os
import pathlib
import struct
import zlib
from collections.abc import Iterable, Mapping
from concurrent import futures
from typing import Any, NamedTuple

import grain
import numpy as np
from absl import logging
from array_record.python import array_record_module

from blt_jax.data.reading.documents import Document
from blt_jax.storage import atomic, files
from blt_jax.storage.folders import Folder

_ENDS = "array_record", "json"  # of a shard, and of what stands beside it
_HEADER = struct.Struct("<Q")  # bytes of text; text, entropies and checksum follow
_CHECKSUM = struct.Struct("<I")
_COUNTS = "records", "file_bytes", "num_shards", "next_document", "documents", "text_bytes"
_SPANS = np.dtype("<u8")  # of answers, from and to
_FEW = 8  # bytes of text whose entropies may all be zero


class Shard(NamedTuple):
  """A shard to read: its path on this machine, its records, and the seed of checksums."""

  path: str
  records: int
  seed: int | None


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


def go_on(folder: str | os.PathLike, process: int) -> Progress:
  """How far process number `process` came; removes what it left unfinished.

  Where a shard is missing or damaged, those after it go as well: they are made again.
  """
  home = Folder(folder)
  sizes = home.sizes()
  whole = _whole_shards(home, sizes, process)
  if _done_name(process) in sizes:
    logging.warning("%s: %s; it and those after it are made again.", folder,
      _describe_missing(process, len(whole)))  # fmt: skip
  kept = {f"{_shard_name(process, i)}.{end}" for i in range(len(whole)) for end in _ENDS}
  for name in sizes:
    if name.startswith((f"{process:02d}-", f".{process:02d}-")) and name not in kept:
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
    return _describe_missing(process, count)
  return ""


def _describe_missing(process: int, number: int) -> str:
  return f"{_shard_name(process, number)}.{_ENDS[0]} is missing or damaged"


def _whole_shards(home: Folder, sizes: Mapping[str, int], process: int) -> list[dict[str, Any]]:
  """What stands beside the shards of a process, from the first on while they are whole."""
  names = (_shard_name(process, i) for i in itertools.count())
  pairs = (tuple(f"{name}.{end}" for end in _ENDS) for name in names)
  there = list(itertools.takewhile(lambda pair: sizes.keys() >= set(pair), pairs))
  with futures.ThreadPoolExecutor(8) as pool:  # remote files take their time
    facts = list(pool.map(lambda pair: _read_facts(home, pair[1]), there))
  sized = zip(facts, (sizes[shard] for shard, _ in there), strict=True)
  whole = itertools.takewhile(
    lambda pair: pair[0].keys() >= set(_COUNTS) and pair[0]["file_bytes"] == pair[1], sized
  )
  return [beside for beside, _ in whole]


def _read_facts(home: Folder, name: str) -> dict[str, Any]:
  """What a file says; nothing where it is damaged, so that it is made again."""
  try:
    facts = home.read_json(name)
  except ValueError:
    return {}
  given = [facts[key] for key in (*_COUNTS, "seed") if key in facts]
  return facts if all(type(n) is int and n >= 0 for n in given) else {}


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
    ValueError: entropies are no numbers.
  """
  name = _shard_name(process, progress.num_shards - 1)
  home, shard = Folder(folder), f"{name}.array_record"
  after = "; shards before it are whole, and the same command goes on after them"
  seed = zlib.crc32(f"{name} {dataclasses.astuple(progress)}".encode())
  with atomic.explaining(home.path_of(shard), after=after), home.new_file(shard) as path:
    count = _write_records(path, (encode(d, entropy_dtype, seed) for d in documents))
    facts = {"records": count, "file_bytes": path.stat().st_size, "seed": seed}
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


def encode(document: Document, entropy_dtype: str, seed: int | None = None) -> bytes:
  """A document as a record, with a checksum where there is a seed.

  Raises:
    ValueError: its entropies are no finite numbers.
  """
  entropies = np.asarray(document.entropies, entropy_dtype)
  if not np.isfinite(entropies).all():
    raise ValueError(
      f"Entropies of the text {document.text[:40]!r}... are NaN or infinite: the entropy "
      "model is damaged; train it again, or choose another of its checkpoints."
    )
  record = b"".join((_HEADER.pack(len(document.text)), document.text, entropies.tobytes()))
  if document.answers is not None:
    record += document.answers.astype(_SPANS).tobytes()
  return record if seed is None else record + _CHECKSUM.pack(zlib.crc32(record, seed))


def decode(
  record: bytes, entropy_dtype: str, seed: int | None = None, has_answers: bool = False
) -> Document:
  """A record as a document; its entropies are for BOS, each byte, and EOS.

  Args:
    record: as `encode` made it.
    entropy_dtype: likewise.
    seed: likewise.
    has_answers: whether it says where answers are.

  Raises:
    ValueError: lengths that do not fit, no record of this kind, another checksum, or
      entropies that no model gives.
  """
  if seed is not None:
    checksum = record[-_CHECKSUM.size :]
    record = record[: -_CHECKSUM.size]
    if checksum != _CHECKSUM.pack(zlib.crc32(record, seed)):
      raise ValueError("a record is not what was written, by its checksum; score again")
  (size,) = _HEADER.unpack_from(record)
  text = record[_HEADER.size : _HEADER.size + size]
  answers = None
  if has_answers:
    end = _HEADER.size + size + (size + 2) * np.dtype(entropy_dtype).itemsize
    answers = np.frombuffer(record[end:], _SPANS).astype(np.int64).reshape(-1, 2)
    record = record[:end]
    _check_answers(answers, size)
  entropies = np.frombuffer(record, entropy_dtype, offset=_HEADER.size + len(text))
  if len(text) != size or len(entropies) != size + 2:
    raise ValueError(
      f"a record has {len(text)} bytes of text and {len(entropies)} entropies, it should "
      f"have {size} and {size + 2}; score the text again"
    )
  if seed is None and not np.isfinite(entropies).all():  # else `encode` looked
    raise ValueError("a record has entropies that are no numbers; score the text again")
  if not entropies[0] and size > _FEW and not entropies.any():
    raise ValueError("a record has no entropies but zeros; score the text again")
  return Document(text, entropies, answers=answers)


def _check_answers(answers: np.ndarray, size: int) -> None:
  """Raises ValueError where spans [n, 2] are none of a text of `size` bytes."""
  ends = answers.ravel()
  if not len(ends) or (np.diff(ends) < 0).any() or ends[0] < 0 or ends[-1] > size:
    raise ValueError("a record does not say where its answers are; score the text again")


def open_shards(path: str | os.PathLike, num_processes: int) -> list[Shard]:
  """All shards of a folder, those of a remote one copied side by side.

  Raises:
    ValueError: one is missing or damaged, or a process has not come to the end.
  """
  folder = Folder(path)
  sizes = folder.sizes()
  flaws = [flaw for p in range(num_processes) if (flaw := _find_flaw(folder, sizes, p))]
  if flaws:
    raise ValueError(
      f"{folder} is not finished: {'; '.join(flaws)}. Run the same score_entropies again, it "
      "makes what is missing."
    )
  shards = [
    (folder.path_of(f"{_shard_name(p, i)}.{_ENDS[0]}"), facts)
    for p in range(num_processes)
    for i, facts in enumerate(_whole_shards(folder, sizes, p))
  ]
  if earlier := sum("seed" not in facts for _, facts in shards):
    logging.warning(
      "%s: %d of %d shards have no checksums, since an earlier version made them; their "
      "entropies are taken as they are.", folder, earlier, len(shards),
    )  # fmt: skip
  with futures.ThreadPoolExecutor(8) as pool:
    return list(pool.map(lambda shard: _open_shard(*shard), shards))


def _open_shard(path: str, facts: Mapping[str, Any]) -> Shard:
  """Copies a shard where it is remote; it must be a file of as many records as it had."""
  here = files.copy_here(path)
  try:
    count = len(grain.sources.ArrayRecordDataSource([here]))
    if count != facts["records"]:
      raise OSError(f"it has {count} records instead of {facts['records']}")
  except (OSError, RuntimeError) as error:
    raise ValueError(
      f"{path} is damaged: {error}. Remove it, and run the same score_entropies again, it "
      "makes what is missing."
    ) from None
  return Shard(here, count, facts.get("seed"))
