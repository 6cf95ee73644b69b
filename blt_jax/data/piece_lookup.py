"""The pieces in the patches of a batch, for a teacher that reads pieces."""

import os

import numpy as np

from blt_jax import tokenizer
from blt_jax.data import pieces

Batch = dict[str, np.ndarray]
UNKNOWN = 0  # of a patch that is no piece
_ID = np.dtype(np.uint16)  # of bytes, where they are looked up


def find_ids(path: str | os.PathLike, own_ids: bool) -> tuple[dict[bytes, int], int]:
  """The id of each piece of a SentencePiece model, by its bytes.

  Args:
    path: its file.
    own_ids: whether ids are the model's, as a Llama's; else those of `PieceVocabulary`.

  Returns:
    The ids, by the ids of bytes as 16 bits each, BOS and EOS included; and how many there are.

  Raises: as `pieces.load_model`.
  """
  _, model = pieces.load_model(path)
  count = model.vocab_size()
  is_text = [not (model.is_control(n) or model.is_unknown(n)) for n in range(count)]
  # Bytes first: a character that has a piece is never written by its bytes.
  order = sorted((n for n in range(count) if is_text[n]), key=lambda n: not model.is_byte(n))
  texts = {n: pieces.to_bytes(model.id_to_piece(n)) for n in order}
  if own_ids:
    found = {texts[n]: n for n in order}
    specials = {tokenizer.BOS_ID: model.bos_id(), tokenizer.EOS_ID: model.eos_id()}
  else:
    longer = [n for n in order if not model.is_byte(n)]
    found = {bytes([byte]): byte + tokenizer.OFFSET for byte in range(256)}
    found |= {texts[n]: tokenizer.VOCAB_SIZE + i for i, n in enumerate(longer)}
    specials = {special: special for special in (tokenizer.BOS_ID, tokenizer.EOS_ID)}
    count = tokenizer.VOCAB_SIZE + len(longer)
  ids = {_key(np.frombuffer(text, np.uint8) + _ID.type(tokenizer.OFFSET)): n
         for text, n in found.items()}  # fmt: skip
  named = {_key(np.array([special])): n for special, n in specials.items() if n >= 0}
  return ids | named, count


def _key(ids: np.ndarray) -> bytes:
  return ids.astype(_ID).tobytes()


class LookUpPieces:
  """Adds `teacher_ids` and `teacher_targets` int32 [B, P] to batches patched by pieces.

  These are the pieces in each patch, and in the next one. Both are `UNKNOWN` where a patch is
  no piece: padding, and what is left of a piece where a row begins or ends inside it. Targets
  are also where not all of their bytes are learned.
  """

  def __init__(self, ids: dict[bytes, int]):
    """Takes the ids of `find_ids`."""
    self._ids = ids

  def __call__(self, batch: Batch) -> Batch:
    """The batch, with both."""
    names = "tokens", "targets", "loss_mask", "patch_lengths"
    rows = [self._row(*arrays) for arrays in zip(*(batch[n] for n in names), strict=True)]
    read, wanted = np.array(rows, np.int32).swapaxes(0, 1)
    return batch | {"teacher_ids": read, "teacher_targets": wanted}

  def _row(
    self, tokens: np.ndarray, targets: np.ndarray, mask: np.ndarray, lengths: np.ndarray
  ) -> np.ndarray:
    """Both, [2, P], of a row: [S], [S], [S], [P]."""
    ends = lengths.cumsum()
    starts = ends - lengths
    read = np.append(tokens, targets[-1])  # [S + 1], as lengths count
    wanted = np.append(0, np.where(mask, targets, 0))  # what each of these was to be
    ids, next_ids = self._find(read, starts, ends), self._find(wanted, starts, ends)

    # A document that goes on from another row starts with a byte that is a patch alone, and
    # then with what was left of a piece; one that is cut ends so, and an EOS stands there.
    before = np.append(tokenizer.EOS_ID, read)
    goes_on = (before[starts] == tokenizer.EOS_ID) & (np.append(read, 0)[starts] > 2)
    last = np.maximum(ends - 1, 0)
    is_cut = (read[last] == tokenizer.EOS_ID) & (wanted[last] != tokenizer.EOS_ID)
    next_ids[is_cut | (ends > len(tokens))] = UNKNOWN
    next_ids[1:][goes_on[:-1]] = UNKNOWN
    return np.stack([ids, np.append(next_ids[1:], UNKNOWN)])

  def _find(self, ids: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The piece [P] of each patch of ids [S + 1]."""
    keys, width = _key(ids), _ID.itemsize
    bounds = zip((starts * width).tolist(), (ends * width).tolist(), strict=True)
    return np.array([self._ids.get(keys[start:end], UNKNOWN) for start, end in bounds])
