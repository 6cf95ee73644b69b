"""From patch starts to patches: lengths, their cuts, and the patch that holds each byte.

Functions take numpy arrays and give numpy arrays, or take jax arrays and give jax
arrays. Under `jit` the number of patch slots must be static: it is then the number of
bytes, with zeros on the right; elsewhere slots that are empty in all rows are dropped.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from blt_jax.patching.arrays import Array, is_traced, namespace


def starts_from_boundaries(
  boundaries: Array, include_next: bool = True, split_first: bool = True
) -> Array:
  """Turns boundaries [B, S] into the mask of patch starts, bool [B, T].

  T is S + 1, or S without the next byte. Byte 0 always starts a patch; byte 1 does too
  if `split_first`.
  """
  xp = namespace(boundaries)
  batch, seq_len = boundaries.shape
  forced = 1 + split_first
  first = xp.ones((batch, forced), bool)
  starts = xp.concatenate([first, boundaries[:, forced - 1 :]], axis=1)
  return starts if include_next else starts[:, :seq_len]


def split_starts(starts: Array, max_patch_length: int) -> Array:
  """Adds a start after every `max_patch_length` bytes of a patch: bool [B, T]."""
  xp = namespace(starts)
  position = xp.arange(starts.shape[1])[None]
  own_start = xp.where(starts, position, 0)
  if xp is np:
    own_start = np.maximum.accumulate(own_start, axis=1)
  else:
    own_start = jax.lax.cummax(own_start, axis=1)
  return (position - own_start) % max_patch_length == 0


def lengths_from_starts(start_mask: Array) -> Array:
  """Turns patch starts into patch lengths.

  Args:
    start_mask: bool [B, T]; byte 0 counts as a start whatever it says.

  Returns:
    int32 [B, P]; rows sum to T.
  """
  if isinstance(start_mask, np.ndarray):
    return _count_between(start_mask)
  total = start_mask.shape[1]
  position = jnp.arange(total)[None]
  starts = jnp.sort(jnp.where(start_mask | (position == 0), position, total), axis=1)
  lengths = jnp.diff(starts, axis=1, append=jnp.full((len(starts), 1), total))
  if not is_traced(lengths):
    lengths = lengths[:, : max(int((lengths > 0).sum(axis=1).max(initial=1)), 1)]
  return lengths.astype(jnp.int32)


def _count_between(starts: np.ndarray) -> np.ndarray:
  """The same without a sort, on the hot path of the data pipeline."""
  starts = starts.copy()
  starts[:, :1] = True  # so that a row's last patch ends where the next row begins
  first = starts.reshape(-1).nonzero()[0]
  flat = np.empty(len(first), np.int32)
  np.subtract(first[1:], first[:-1], out=flat[:-1], casting="same_kind")
  flat[-1:] = starts.size - first[-1:]
  if len(starts) == 1:  # a document of the data pipeline
    return flat[None]
  counts = np.diff(first.searchsorted(np.arange(len(starts) + 1) * starts.shape[1]))
  width = counts.max(initial=1)
  lengths = np.zeros((len(starts), width), np.int32)
  lengths[np.arange(width) < counts[:, None]] = flat
  return lengths


def split_long(lengths: Array, max_patch_length: int, num_patches: int | None = None) -> Array:
  """Cuts patches longer than `max_patch_length` into pieces.

  Args:
    lengths: int [B, P].
    max_patch_length: bytes, at least 1.
    num_patches: width of the result; by default what the widest row needs. It must be
      given under `jit`.

  Returns:
    int32 [B, P']; zeros of the input stay and move to the right.
  """
  xp = namespace(lengths)
  pieces = xp.maximum(-(-lengths // max_patch_length), 1)
  ends = xp.cumsum(pieces, axis=1)
  if num_patches is None:
    if is_traced(lengths):
      raise ValueError("Under jit, split_long needs num_patches, the width of its result.")
    num_patches = int(ends[:, -1].max())
  owner = patch_ids(pieces, num_patches)
  column = xp.minimum(owner, lengths.shape[1] - 1)
  length = xp.take_along_axis(lengths, column, axis=1)
  first = xp.take_along_axis(ends - pieces, column, axis=1)
  left = length - (xp.arange(num_patches)[None] - first) * max_patch_length
  piece = xp.where(owner < lengths.shape[1], xp.clip(left, 0, max_patch_length), 0)
  return piece.astype(xp.int32)


def patch_ids(lengths: Array, seq_len: int) -> Array:
  """The patch that holds each byte: int32 [B, S] from lengths [B, P]."""
  xp = namespace(lengths)
  ends = xp.minimum(xp.cumsum(lengths, axis=1), seq_len)  # those beyond S are dropped
  rows = xp.arange(len(lengths))[:, None]
  crossed = xp.zeros((len(lengths), seq_len + 1), xp.int32)
  if xp is np:
    np.add.at(crossed, (rows, ends), 1)
  else:
    crossed = crossed.at[rows, ends].add(1)
  return xp.cumsum(crossed, axis=1)[:, :seq_len].astype(xp.int32)


def decoder_patch_ids(lengths: Array, seq_len: int) -> Array:
  """The newest patch complete before the patch of the next byte: int32 [B, S].

  The logits at t predict byte t + 1, whose patch is still open; they may read the patch
  before it, `patch_ids[t + 1] - 1`.

  Args:
    lengths: int [B, P]; the first patch of each row has one byte.
    seq_len: S.
  """
  return patch_ids(lengths[:, 1:], seq_len)


def levels_of(starts: list[np.ndarray]) -> np.ndarray:
  """In how many coarser resolutions each patch of the finest one starts a patch too.

  Args:
    starts: bool [1, T] of each resolution, from fine to coarse; see `rules.patch_starts`.

  Returns:
    uint8 [P], of the P patches of the finest.
  """
  levels = np.stack(starts[1:]).sum(axis=0, dtype=np.uint8)
  return levels[starts[0]]


def nest(lengths: np.ndarray, levels: np.ndarray, resolutions: int) -> np.ndarray:
  """The patches of all resolutions from the finest.

  Args:
    lengths: int [B, P] of the finest.
    levels: int [B, P], see `levels_of`. The first two patches of a row start some at every
      resolution, whatever it says.
    resolutions: R.

  Returns:
    int32 [R, B, P], from fine to coarse.
  """
  found = np.zeros((resolutions, *lengths.shape), np.int32)
  rows = np.arange(len(lengths))[:, None]
  for level in range(resolutions):
    starts = levels >= level
    starts[:, :2] = True
    np.add.at(found[level], (rows, np.cumsum(starts, axis=1) - 1), lengths)
  return found


def check_nested_lengths(lengths: Array, seq_len: int) -> None:
  """Raises ValueError unless `lengths` [R, B, P] fit a row at each resolution, and nest.

  As `check_lengths`, which looks at each.
  """
  if lengths.ndim != 3 or not len(lengths):
    raise ValueError(f"patch_lengths must be [R, B, P], got shape {lengths.shape}.")
  for own in lengths:
    check_lengths(own, seq_len)
  if is_traced(lengths):
    return
  ends = np.cumsum(np.asarray(lengths), axis=2)  # those of empty patches are S + 1
  for finer, coarser in itertools.pairwise(range(len(lengths))):
    for row, (fine, coarse) in enumerate(zip(ends[finer], ends[coarser], strict=True)):
      if len(astray := np.setdiff1d(coarse, fine)):
        raise ValueError(
          f"A patch of resolution {coarser} in row {row} ends before byte {astray[0]}, where "
          f"none of resolution {finer} does: resolutions must nest, from fine to coarse (as "
          "patching.nested_lengths makes them)."
        )


def check_lengths(lengths: Array, seq_len: int) -> None:
  """Raises ValueError unless `lengths` [B, P] fit a model's row of `seq_len` bytes.

  Traced values cannot be looked at, so under `jit` only the shape is checked.
  """
  if lengths.ndim != 2:
    raise ValueError(f"patch_lengths must be [B, P], got shape {lengths.shape}.")
  if is_traced(lengths):
    return
  lengths = np.asarray(lengths)
  if (lengths < 0).any():
    raise ValueError("patch_lengths has negative entries; lengths are 0 or more bytes.")
  for row, total in enumerate(lengths.sum(axis=1)):
    if total != seq_len + 1:
      raise ValueError(
        f"patch_lengths of row {row} sum to {total}; they must sum to S + 1 = "
        f"{seq_len + 1}, the next byte included (patch with include_next=True)."
      )
  for row, first in enumerate(lengths[:, 0]):
    if first != 1:
      raise ValueError(
        f"The first patch of row {row} has {first} bytes; it must have exactly 1, since "
        "the decoder reads complete patches only (patch with split_first=True)."
      )
  if ((lengths[:, :-1] == 0) & (lengths[:, 1:] > 0)).any():
    raise ValueError("patch_lengths has empty patches inside; move zeros to the right.")
