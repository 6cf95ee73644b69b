"""Where documents come from."""

import hashlib
import pathlib
import sysconfig
from collections.abc import Sequence

from absl import logging

STDLIB = "stdlib"


def read_documents(path: str, max_bytes: int = 65_536) -> list[bytes]:
  """Reads text documents.

  Args:
    path: a text file, a folder of text files at any depth, or "stdlib": the Python
      standard library's own sources, real text that every machine with Python has.
    max_bytes: files longer than this become several documents, cut after a line.

  Returns:
    The documents in the order of their paths, none of them empty.

  Raises:
    FileNotFoundError: nothing is there.
    ValueError: the file is not UTF-8 text, or there is no text at all.
  """
  documents = []
  for file in _list_files(path):
    raw = file.read_bytes()
    if not _is_text(raw):
      if str(file) == path:
        raise ValueError(f"{path} is not UTF-8 text; give a text file or a folder of them.")
      logging.warning("Skipping %s: not UTF-8 text.", file)
      continue
    documents.extend(_cut(raw, max_bytes))
  if not documents:
    raise ValueError(f"{path} holds no text; give a text file or a folder of them.")
  return documents


def read_split(
  path: str, heldout_path: str, heldout_fraction: float
) -> tuple[list[bytes], list[bytes]]:
  """Reads (training, held-out) documents.

  Args:
    path: see `read_documents`.
    heldout_path: the same; empty to hold some documents of `path` out.
    heldout_fraction: how many of them, in [0, 1].
  """
  if heldout_path:
    return read_documents(path), read_documents(heldout_path)
  return split_documents(read_documents(path), heldout_fraction)


def split_documents(
  documents: Sequence[bytes], heldout_fraction: float
) -> tuple[list[bytes], list[bytes]]:
  """Divides documents in (training, held-out) by their content, equal ones together.

  Raises:
    ValueError: fewer than two different documents.
  """
  rank = {d: int.from_bytes(hashlib.sha256(d).digest()[:8]) / 2**64 for d in documents}
  if len(rank) < 2:
    raise ValueError(
      "The data is a single short document and none can be held out; give more text, or "
      "a file of its own in config.data.heldout_path."
    )
  limit = max(heldout_fraction, min(rank.values()))
  limit = min(limit, sorted(rank.values())[-2])  # one at least is for training
  train = [d for d in documents if rank[d] > limit]
  return train, [d for d in documents if rank[d] <= limit]


def _list_files(path: str) -> list[pathlib.Path]:
  if path == STDLIB:
    root = pathlib.Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "dist-packages", "test", "tests", "idlelib"}
    return [
      f for f in sorted(root.rglob("*.py")) if skipped.isdisjoint(f.relative_to(root).parts)
    ]
  source = pathlib.Path(path)
  if not source.exists():
    raise FileNotFoundError(f"No file or folder {path}; set config.data.path to your text.")
  return sorted(f for f in source.rglob("*") if f.is_file()) if source.is_dir() else [source]


def _is_text(raw: bytes) -> bool:
  try:
    raw.decode("utf-8")
  except UnicodeDecodeError:
    return False
  return b"\0" not in raw


def _cut(raw: bytes, max_bytes: int) -> list[bytes]:
  pieces = []
  while len(raw) > max_bytes:
    end = raw.rfind(b"\n", 0, max_bytes) + 1 or max_bytes
    pieces.append(raw[:end])
    raw = raw[end:]
  return pieces + [raw] * bool(raw.strip())
