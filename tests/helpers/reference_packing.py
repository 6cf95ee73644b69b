"""Packing as the reference does it, for comparisons with it.

Its rows waste slots, drop bytes and share patches between documents; training uses
`packing.rows.PackRows`. Reference: Meta `bytelatent/data/iterators/packing_iterator.py`.
"""

import itertools
from collections.abc import Iterable, Iterator

import numpy as np

from blt_jax import tokenizer

Batch = dict[str, np.ndarray]
Sequence = tuple[np.ndarray, np.ndarray]  # tokens [n], patch_lengths [P] summing to n


def pack_by_patches(
  sequences: Iterable[Sequence], batch_size: int, max_length: int
) -> Iterator[Batch]:
  """Packs sequences of P patches each into batches of rows of `max_length` bytes.

  A first patch of several bytes is split after the first one, and the last patch is
  dropped for it. Rows that are longer are cut, others padded; padding belongs to the
  last patch. The last batch is filled with rows of padding, which have the patches of
  the row before them.

  Args:
    sequences: tokens int [n] and patch_lengths int [P], which sum to n.
    batch_size: B.
    max_length: S, bytes of a row.

  Yields:
    `x`, `y` int32 [B, S], `mask` bool [B, S] where y is a target, and `patch_lengths`
    int32 [B, P]; its rows sum to S + 1.

  Raises:
    ValueError: lengths that do not sum to n, fewer than 2 patches, or not P.
  """
  num_patches = 0
  for group in _batched(sequences, batch_size):
    rows = [_split_first(np.asarray(t), np.asarray(p)) for t, p in group]
    num_patches = num_patches or len(rows[0][1])
    batch = _empty(batch_size, max_length)
    batch["patch_lengths"] = np.empty((batch_size, num_patches), np.int32)
    for i, (tokens, lengths) in enumerate(rows):
      if len(lengths) != num_patches:
        raise ValueError(
          f"A sequence has {len(lengths)} patches; all need as many as the first, "
          f"{num_patches}."
        )
      targets = tokens[1 : max_length + 1]
      batch["x"][i, : len(targets)] = tokens[: len(targets)]
      batch["y"][i, : len(targets)] = targets
      batch["mask"][i, : len(targets)] = True
      batch["patch_lengths"][i:] = _stretch(lengths, max_length + 1)
    yield batch


def pack_by_bytes(
  sequences: Iterable[np.ndarray], batch_size: int, seq_len: int
) -> Iterator[Batch]:
  """Packs sequences of S ids each into batches, as for the entropy model.

  The reference trains the last position of each row on id 0; so does this.

  Args:
    sequences: tokens int [S].
    batch_size: B.
    seq_len: S.

  Yields:
    `x`, `y` int32 [B, S] and `mask` bool [B, S]; the last batch is filled with rows of
    padding.

  Raises:
    ValueError: a sequence that has not S ids.
  """
  for group in _batched(sequences, batch_size):
    batch = _empty(batch_size, seq_len)
    for i, tokens in enumerate(group):
      if len(tokens) != seq_len:
        raise ValueError(f"A sequence has {len(tokens)} ids; all need seq_len = {seq_len}.")
      batch["x"][i] = tokens
      batch["y"][i, :-1] = tokens[1:]
      batch["mask"][i] = True
    yield batch


def _batched(sequences: Iterable, batch_size: int) -> Iterator[list]:
  iterator = iter(sequences)
  while group := list(itertools.islice(iterator, batch_size)):
    yield group


def _empty(batch_size: int, seq_len: int) -> Batch:
  shape = (batch_size, seq_len)
  return {
    "x": np.full(shape, tokenizer.BOE_ID, np.int32),
    "y": np.full(shape, tokenizer.BOE_ID, np.int32),
    "mask": np.zeros(shape, bool),
  }


def _split_first(tokens: np.ndarray, lengths: np.ndarray) -> Sequence:
  if lengths.sum() != len(tokens) or len(lengths) < 2:
    raise ValueError(
      f"A sequence of {len(tokens)} ids has {len(lengths)} patches that sum to "
      f"{lengths.sum()}; it needs two patches or more that sum to its length."
    )
  if lengths[0] == 1:
    return tokens, lengths
  kept = tokens[: len(tokens) - lengths[-1]]
  return kept, np.concatenate([[1, lengths[0] - 1], lengths[1:-1]])


def _stretch(lengths: np.ndarray, total: int) -> np.ndarray:
  """Makes lengths sum to `total`: the last one grows, or the end is cut off."""
  ends = np.minimum(np.cumsum(lengths), total)
  ends[-1] = total
  return np.diff(ends, prepend=0)
