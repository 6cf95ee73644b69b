"""Text as the pieces of a SentencePiece model, whose ids go on after those of bytes."""

import os
from collections.abc import Iterable

import numpy as np

from blt_jax import tokenizer
from blt_jax.data import pieces

_PROBE = b" a  b "  # what a model that changes text changes


class PieceVocabulary:
  """Ids of pieces: specials and bytes as in `tokenizer`, then the model's longer pieces.

  The bytes of a text's ids are the text, whatever it is: bytes that are not UTF-8, and
  characters that no piece has, are ids of bytes. Pickling sends the path.

  Attributes:
    size: V, ids.
    sizes: int32 [V], bytes of each id; 0 of specials.
  """

  def __init__(self, path: str | os.PathLike):
    """Opens the file of a model that keeps text as it is, as `train_tokenizer` makes it.

    Raises:
      FileNotFoundError, ImportError: as `pieces.load_model`.
      ValueError: as `pieces.load_model`, or the model changes text, or has no byte fallback.
    """
    self._path, self._model = pieces.load_model(path)
    count = self._model.vocab_size()
    num_bytes = sum(map(self._model.is_byte, range(count)))
    if num_bytes != 256:
      raise ValueError(
        f"{path} has pieces for {num_bytes} of 256 bytes, so it cannot write every text; train "
        "it with byte fallback, as `python -m blt_jax.train_tokenizer` does."
      )
    self._bytes = [b""] * tokenizer.OFFSET + [bytes([byte]) for byte in range(256)]
    self._ids = np.full(count, tokenizer.BPE_ID, np.int32)  # our id of each of the model's
    self._take_pieces()
    self.size = len(self._bytes)
    self.sizes = np.array([len(piece) for piece in self._bytes], np.int32)
    self.encode(_PROBE)

  def _take_pieces(self) -> None:
    model = self._model
    for number in range(len(self._ids)):
      piece = model.id_to_piece(number)
      if model.is_byte(number):
        self._ids[number] = int(piece[3:5], 16) + tokenizer.OFFSET  # <0xFF>
      elif not (model.is_control(number) or model.is_unknown(number)):
        self._ids[number] = len(self._bytes)
        self._bytes.append(piece.replace(pieces.SPACE, " ").encode())

  def __reduce__(self):
    return PieceVocabulary, (self._path,)

  def __call__(self, text: bytes) -> np.ndarray:
    """Ids [n] of a document, BOS and EOS included, in 16 bits where that is enough.

    Raises:
      ValueError: as `encode`.
    """
    ids = np.concatenate([[tokenizer.BOS_ID], self.encode(text), [tokenizer.EOS_ID]])
    return ids.astype(np.uint16 if self.size <= 2**16 else np.int32)

  def encode(self, text: bytes) -> np.ndarray:
    """Ids int32 [n] of a text, without BOS and EOS.

    Raises:
      ValueError: the model changes the text.
    """
    parts = [np.empty(0, np.int32)]
    for run in pieces.split_raw(text):
      if isinstance(run, bytes):
        parts.append(tokenizer.encode(run, add_bos=False, add_eos=False))
      else:
        parts.append(self._ids[self._model.encode(run)])
    ids = np.concatenate(parts)
    if self.decode_bytes(ids) != text:
      raise ValueError(
        f"The pieces of {self._path} are not the text itself: its model must keep text as it "
        "is (identity normalization, extra white space kept, no dummy prefix), as those of "
        "`python -m blt_jax.train_tokenizer`."
      )
    return ids

  def decode_bytes(self, ids: Iterable[int] | np.ndarray) -> bytes:
    """The bytes of ids [n]; specials have none.

    Raises:
      IndexError: an id is not below V.
    """
    return b"".join(self._bytes[number] for number in np.asarray(ids).tolist())

  def starting_with(self, start: bytes) -> np.ndarray:
    """Which ids begin with these bytes: bool [V]."""
    return np.array([piece.startswith(start) for piece in self._bytes])
