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
  return _cut(_read_files(path), max_bytes)


def read_split(
  path: str, heldout_path: str, heldout_fraction: float, max_bytes: int = 65_536
) -> tuple[list[bytes], list[bytes]]:
  """Reads (training, held-out) documents.

  Args:
    path: see `read_documents`.
    heldout_path: the same; empty to hold some text of `path` out: whole files, or
      pieces where there is a single file.
    heldout_fraction: how many of them, in [0, 1].
    max_bytes: see `read_documents`.

  Raises:
    FileNotFoundError: nothing is there.
    ValueError: there is no text, or too little to hold some out.
  """
  if heldout_path:
    return read_documents(path, max_bytes), read_documents(heldout_path, max_bytes)
  files = _read_files(path)
  parts = split_documents(files if len(files) > 1 else _cut(files, 4096), heldout_fraction)
  return _cut(parts[0], max_bytes), _cut(parts[1], max_bytes)


def split_documents(
  documents: Sequence[bytes], heldout_fraction: float
) -> tuple[list[bytes], list[bytes]]:
  """Divides documents in (training, held-out) by their content, equal ones together.

  Raises:
    ValueError: fewer than two different documents.
  """
  rank = {d: int.from_bytes(hashlib.sha256(d).digest()[:8], "big") for d in documents}
  if len(rank) < 2:
    raise ValueError(
      "The data is a single short document and none can be held out; give more text, or "
      "a file of its own in config.data.heldout_path."
    )
  ordered = sorted(rank.values())
  # At least one document on either side.
  limit = min(max(int(heldout_fraction * 2**64), ordered[0]), ordered[-2])
  train = [d for d in documents if rank[d] > limit]
  return train, [d for d in documents if rank[d] <= limit]


def _read_files(path: str) -> list[bytes]:
  """The contents of all text files, none of them empty."""
  texts = []
  for file in _list_files(path):
    raw = file.read_bytes()
    if _is_text(raw):
      texts.append(raw)
    elif str(file) == str(pathlib.Path(path)):
      raise ValueError(f"{path} is not UTF-8 text; give a text file or a folder of them.")
    else:
      logging.warning("Skipping %s: not UTF-8 text.", file)
  texts = [t for t in texts if t.strip()]
  if not texts:
    raise ValueError(f"{path} holds no text; give a text file or a folder of them.")
  return texts


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


def _cut(documents: Sequence[bytes], max_bytes: int) -> list[bytes]:
  """Cuts documents into pieces of at most `max_bytes`, after a line where there is one."""
  pieces = []
  for rest in documents:
    while len(rest) > max_bytes:
      end = rest.rfind(b"\n", 0, max_bytes) + 1 or max_bytes
      pieces.append(rest[:end])
      rest = rest[end:]
    pieces.append(rest)
  return [p for p in pieces if p.strip()]
