"""Documents in overlapping windows, so that predictions see a limited number of bytes."""

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from blt_jax import tokenizer
from blt_jax.data.pipeline import Batch, BatchShape
from blt_jax.data.transforms import PatchDocument

_ALIGNMENT = 64  # of the longest rows, in slots
_LEAST = 64  # other sizes are powers of two from here on: few programs are compiled


class Window(NamedTuple):
  """Ids of a document that are read as a text of their own.

  Attributes:
    tokens: [n].
    patch_lengths: sum to n; the first is 1.
    first: the first of the ids that is a prediction to be scored, 1 or more.
    mask: bool [n], which ids count where they are scored; None for all.
    levels: of the patches, where there are several resolutions; else None.
  """

  tokens: np.ndarray
  patch_lengths: np.ndarray
  first: int
  mask: np.ndarray | None
  levels: np.ndarray | None = None


def check_context(context: int, sizes: np.ndarray | None) -> None:
  """Raises ValueError where no window could hold what a prediction must see.

  Args:
    context: the most bytes before a prediction.
    sizes: int [V], bytes of each id where ids are pieces; None where they are bytes.
  """
  least = 1 if sizes is None else int(sizes.max())
  if context < least:
    why = "" if sizes is None else ", the longest piece of the tokenizer"
    raise ValueError(f"--context must be {least} bytes or more{why}, got {context}.")


def cut(sizes: np.ndarray, context: int) -> Iterator[tuple[int, int, int]]:
  """Divides the ids of a document.

  Args:
    sizes: int [n], bytes of each id, BOS and EOS included.
    context: the most bytes that a prediction sees before it; the longest id has no more.

  Yields:
    start, first, stop: ids [start, stop) are read, and those from `first` on scored. Each id
    but the first one is scored once, and sees `context` bytes at most, and half of them at
    least or all there are.
  """
  before = np.concatenate([[0], np.cumsum(sizes)])[: len(sizes)]  # [n], bytes before each id
  start, first = 0, 1
  while first < len(sizes):
    stop = int(before.searchsorted(before[start] + context, side="right"))
    yield start, first, stop
    if stop < len(sizes):
      half = before[stop] - (context + 1) // 2
      start = min(int(before.searchsorted(half)), stop - 1)
    first = stop


def window_batches(
  documents: Iterable[dict[str, np.ndarray]],
  patch: PatchDocument,
  shape: BatchShape,
  context: int,
) -> Iterator[Batch]:
  """Windows of all documents in order, each in a row of its own.

  A window knows nothing of what is before it: its patches, entropies and n-grams are those of
  a text that begins there, but for entropies that come with the document. The first one of a
  document begins with its BOS, others have none, as rows that go on in a document.

  Args:
    documents: `tokens` [n] of each, BOS and EOS included, and maybe its `loss_mask`, as
      `PatchDocument.ids` gives them; and maybe `entropies` [n] of the whole document.
    patch: how windows are patched.
    shape: `seq_len` and what divides it say how long rows are at most; `batch_size` rows are
      in a batch.
    context: see `cut`.

  Yields:
    Batches as of `pipeline.evaluation_batches`, of one of few sizes.
  """
  windows = (w for document in documents for w in _windows(document, patch, context))
  while rows := list(itertools.islice(windows, shape.batch_size)):
    batch = _stack(rows, shape)
    if patch.sizes is not None:
      batch["target_bytes"] = patch.sizes[batch["targets"]]
    yield batch


def row_length(longest: int, multiple: int) -> int:
  """Slots of rows that hold `longest` inputs, for `BatchShape.seq_len`."""
  step = math.lcm(multiple, _ALIGNMENT) if longest > _ALIGNMENT else multiple
  return -(-longest // step) * step


def _windows(
  document: dict[str, np.ndarray], patch: PatchDocument, context: int
) -> Iterator[Window]:
  tokens, mask = document["tokens"], document.get("loss_mask")
  entropies = document.get("entropies")
  sizes = tokens >= tokenizer.OFFSET if patch.sizes is None else patch.sizes[tokens]
  for start, first, stop in cut(sizes, context):
    part = tokens[start:stop]
    given = None if entropies is None else entropies[start:stop]
    found = patch.patch(part, given)
    lengths = found["patch_lengths"]
    if lengths[0] > 1:
      lengths = np.concatenate([[1, lengths[0] - 1], lengths[1:]])
    own = None if mask is None else mask[start:stop]
    yield Window(part, lengths, first - start, own, found.get("patch_levels"))


def _stack(windows: list[Window], shape: BatchShape) -> Batch:
  """One row for each window; those that are missing have no loss."""
  longest = max(len(w.tokens) for w in windows) - 1
  slots = _up(longest)
  if longest <= shape.seq_len:
    slots = min(slots, shape.seq_len)
  slots = -(-slots // shape.row_multiple) * shape.row_multiple
  patches = min(_up(max(len(w.patch_lengths) for w in windows)), slots + 1)
  rows = shape.batch_size
  batch = {
    "tokens": np.zeros((rows, slots), np.int32),
    "targets": np.zeros((rows, slots), np.int32),
    "loss_mask": np.zeros((rows, slots), bool),
    "patch_lengths": np.zeros((rows, patches), np.int32),
  }
  batch["patch_lengths"][:, :2] = 1, slots  # of rows without a window
  if shape.is_nested:
    batch["patch_levels"] = np.zeros((rows, patches), np.uint8)
  for row, (tokens, lengths, first, mask, levels) in enumerate(windows):
    size, count = len(tokens) - 1, len(lengths)
    batch["tokens"][row, :size] = tokens[:-1]
    batch["targets"][row, first - 1 : size] = tokens[first:]
    batch["loss_mask"][row, first - 1 : size] = True if mask is None else mask[first:]
    batch["patch_lengths"][row, :count] = lengths
    batch["patch_lengths"][row, count - 1] += slots - size
    batch["patch_lengths"][row, count:] = 0
    if levels is not None:
      batch["patch_levels"][row, :count] = levels
  return batch


def _up(number: int) -> int:
  """The next power of two, `_LEAST` or more."""
  return 1 << (max(number, _LEAST) - 1).bit_length()
