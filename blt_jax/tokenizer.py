"""Bytes as ids: the 260-id vocabulary of BLT and its text conversions.

Ids 0 to 3 are special; id = byte + 4 otherwise (Meta `tokenizers/constants.py`).
"""

from collections.abc import Iterable

import numpy as np

BOE_ID = 0  # padding of packed batches
BOS_ID = 1  # opens a document
EOS_ID = 2  # closes a document
BPE_ID = 3  # delimiter before each BPE piece, in the "bpe" patching scheme
OFFSET = 4
VOCAB_SIZE = 256 + OFFSET
NEWLINE_ID = ord("\n") + OFFSET


def encode(
  text: str | bytes,
  add_bos: bool = True,
  add_eos: bool = True,
  dtype: type[np.integer] = np.int32,
) -> np.ndarray:
  """Turns text or raw bytes into ids.

  Args:
    text: a string (encoded as UTF-8, lone surrogates are dropped) or bytes.
    add_bos: put `BOS_ID` in front.
    add_eos: put `EOS_ID` at the end.
    dtype: of the ids, 16 bits or more.

  Returns:
    [n] ids.
  """
  raw = text.encode("utf-8", errors="ignore") if isinstance(text, str) else text
  ids = np.empty(add_bos + len(raw) + add_eos, dtype)
  ids[: int(add_bos)], ids[len(ids) - add_eos :] = BOS_ID, EOS_ID
  own = ids[int(add_bos) : add_bos + len(raw)]
  np.add(np.frombuffer(raw, np.uint8), OFFSET, out=own, dtype=dtype)
  return ids


def is_text(text: str) -> bool:
  """Whether all of a string can be encoded: it has no lone surrogate."""
  return not any("\ud800" <= character <= "\udfff" for character in text)


def decode_bytes(ids: Iterable[int] | np.ndarray) -> bytes:
  """Turns ids [n] into bytes; special ids are dropped.

  Raises:
    ValueError: an id is not below `VOCAB_SIZE`.
  """
  ids = np.asarray(ids, np.int64).reshape(-1)
  if ids.size and ids.max() >= VOCAB_SIZE:
    raise ValueError(f"Id {ids.max()} is not a byte: ids are below {VOCAB_SIZE}.")
  return (ids[ids >= OFFSET] - OFFSET).astype(np.uint8).tobytes()


def decode(ids: Iterable[int] | np.ndarray) -> str:
  """Turns ids [n] into text; special ids and malformed UTF-8 are dropped."""
  return decode_bytes(ids).decode("utf-8", errors="ignore")
