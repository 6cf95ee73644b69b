"""Text in BPE pieces, and with a delimiter before each: what the "bpe" scheme patches."""

import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from blt_jax import tokenizer
from blt_jax.storage import files

SPACE = "▁"  # stands for a space in pieces
_RAW = re.compile(f"([\udc80-\udcff{SPACE}])")  # bytes that are not UTF-8; what pieces confuse
_BYTE = re.compile("<0x([0-9A-F]{2})>")


def load_model(path: str | os.PathLike) -> tuple[str, Any]:
  """Opens the file of a SentencePiece model.

  Returns:
    Its path on this machine, and the `SentencePieceProcessor`.

  Raises:
    FileNotFoundError: there is none.
    ImportError: sentencepiece is missing.
    ValueError: the file holds no such model.
  """
  try:
    import sentencepiece
  except ImportError as error:
    raise ImportError("BPE pieces need sentencepiece: pip install 'blt_jax[bpe]'") from error
  here = files.copy_here(path)
  if not os.path.isfile(here):
    raise FileNotFoundError(
      f"No file {path}; config.patching.tokenizer is that of a SentencePiece model."
    )
  try:
    return here, sentencepiece.SentencePieceProcessor(model_file=here)
  except (OSError, RuntimeError) as error:
    raise ValueError(f"{path} holds no SentencePiece model: {error}.") from error


def split_raw(text: bytes) -> Iterator[str | bytes]:
  """Divides text into runs for a model, str, and bytes that none may see as they are.

  Those are bytes that are not UTF-8, one by one, and the character that stands for a space.
  """
  for run in _RAW.split(text.decode(errors="surrogateescape")):
    if _RAW.fullmatch(run):
      yield run.encode(errors="surrogateescape")
    elif run:
      yield run


def to_bytes(piece: str) -> bytes:
  """What a piece of a model stands for."""
  if byte := _BYTE.fullmatch(piece):
    return bytes.fromhex(byte[1])
  return piece.replace(SPACE, " ").encode()


class PieceEncoder:
  """Turns text into ids, `BPE_ID` before each piece of a SentencePiece model.

  The model must not change text (normalization "identity", all whitespace kept), as that of
  Llama 2. Pickling sends the path. Reference: `tokenizers/blt_tokenizer.py`, `bpe_delim`.
  """

  def __init__(self, path: str | os.PathLike):
    """Opens the file of a model; raises as `load_model` does."""
    self._path, self._model = load_model(path)

  def __reduce__(self):
    return PieceEncoder, (self._path,)

  def __call__(self, text: bytes) -> np.ndarray:
    """Ids uint16 [n] of a document, BOS and EOS included.

    Raises:
      ValueError: the model changes the text.
    """
    pieces = list(self.split(text))
    if b"".join(pieces) != text:
      raise self._error()
    lengths = np.array([len(piece) for piece in pieces], int)
    ids = tokenizer.encode(text, dtype=np.uint16)
    return np.insert(ids, 1 + np.cumsum(lengths) - lengths, tokenizer.BPE_ID)

  def split(self, text: bytes) -> Iterator[bytes]:
    """Splits text into pieces; bytes that are not UTF-8 stand alone."""
    for run in split_raw(text):
      if isinstance(run, bytes):
        yield run
      else:
        yield from filter(None, self._split_valid(run))

  def sizes(self, text: bytes) -> np.ndarray:
    """Bytes of each piece, as the model divides text: int32 [m].

    Raises:
      ValueError: the model changes the text.
    """
    parts: list[bytes] = []
    for run in split_raw(text):
      if isinstance(run, bytes):
        parts += [bytes([byte]) for byte in run]
      else:
        parts += self._split_exactly(run.encode())
    return np.array([len(part) for part in parts], np.int32)

  def _split_exactly(self, text: bytes) -> list[bytes]:
    """Pieces, without the space that some models put before a text."""
    parts = [to_bytes(piece) for piece in self._model.encode(text.decode(), out_type=str)]
    if b"".join(parts) == b" " + text:
      parts[0] = parts[0][1:]
    if b"".join(parts) != text:
      raise self._error()
    return [part for part in parts if part]

  def _error(self) -> ValueError:
    return ValueError(
      f"The pieces of {self._path} are not the text itself, but a normalized one; take a "
      "model that keeps text as it is, such as that of Llama 2."
    )

  def _split_valid(self, text: str) -> Iterator[bytes]:
    """The model puts a space before the text; spaces that it begins with are one piece."""
    pieces = self._model.encode(text, out_type=str)
    while pieces and not pieces[0].strip(SPACE):
      pieces.pop(0)
    yield b" " * (len(text) - len(text.lstrip(" ")))
    for number, piece in enumerate(pieces):
      yield to_bytes(piece if number else piece.lstrip(SPACE))
