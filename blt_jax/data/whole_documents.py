"""Rows of documents none of which is cut, and where each stands: for scores of whole texts."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from blt_jax.data.packing.document_pool import DocumentPool
from blt_jax.data.packing.open_document import OpenDocument
from blt_jax.data.packing.row_filling import RowFiller, Rows, empty_rows
from blt_jax.data.pipeline import Batch, BatchShape, to_evaluation_batch


class Place(NamedTuple):
  """Where a document stands: slot `start` + i of a row predicts its id i + 1.

  Attributes:
    batch: number of the batch.
    row: of the batch.
    start: slot of the document's first id.
  """

  batch: int
  row: int
  start: int


def count_excess(
  document: dict[str, np.ndarray], shape: BatchShape, sizes: np.ndarray | None = None
) -> int:
  """How many bytes a text has to lose, or at least to begin with, to have room in a row.

  Args:
    document: its `tokens` int [n] and `patch_lengths`, as `pack` takes them.
    shape: of batches.
    sizes: int [V], bytes of each id, where ids are pieces.

  Returns:
    Bytes after the BOS; 0 where there is room.
  """
  opened = _open(document, shape)
  num_patches = max(opened.patches_left - shape.num_patches, 0)
  num_ids = max(
    opened.left - shape.seq_len - 1, int(document["patch_lengths"][1 : 1 + num_patches].sum())
  )
  if sizes is None or num_ids <= 0:
    return max(num_ids, 0)
  return int(sizes[document["tokens"][1 : 1 + num_ids]].sum())


def pack(
  documents: Sequence[dict[str, np.ndarray]],
  shape: BatchShape,
  sizes: np.ndarray | None = None,
  alone: bool = False,
) -> tuple[list[Batch], list[Place]]:
  """Fills rows with whole documents, in their order; masks keep them apart.

  Args:
    documents: `tokens` int [n], BOS and EOS included, and `patch_lengths` of each.
    shape: of the batches; the last one is filled with rows without loss.
    sizes: int [V], bytes of each id, where ids are pieces; see `PatchDocument`.
    alone: no two documents share a row.

  Returns:
    The batches, as `pipeline.evaluation_batches` gives them, and the place of each document.

  Raises:
    ValueError: a document is longer than a row.
  """
  pool, filler = DocumentPool(shape.seq_len, shape.seq_len), None
  rows: list[Rows] = []
  places: list[Place] = []
  for number, document in enumerate(documents):
    opened = _open(document, shape)
    if filler is None or alone or not filler.fits(opened):
      filler = _new_row(rows, filler, pool, shape)
    if not filler.fits(opened):
      raise ValueError(f"Document {number} is longer than a row of {shape.seq_len} slots.")
    places.append(Place(*divmod(len(rows) - 1, shape.batch_size), filler.start))
    pool.open(opened)
    filler.add()
  while filler is not None and len(rows) % shape.batch_size:
    filler = _new_row(rows, filler, pool, shape)
  if filler is not None:
    filler.close()
  batches = [
    to_evaluation_batch({k: np.concatenate([row[k] for row in part]) for k in part[0]}, sizes)
    for part in (rows[i : i + shape.batch_size] for i in range(0, len(rows), shape.batch_size))
  ]
  return batches, places


def _open(document: dict[str, np.ndarray], shape: BatchShape) -> OpenDocument:
  return OpenDocument(document, 0, None, shape.num_patches)


def _new_row(
  rows: list[Rows], before: RowFiller | None, pool: DocumentPool, shape: BatchShape
) -> RowFiller:
  """Ends the row before, if there is one, and begins another."""
  if before is not None:
    before.close()
  rows.append(empty_rows(1, shape.seq_len, shape.num_patches, shape.is_nested))
  return RowFiller(pool, [array[0] for array in rows[-1].values()], shape.row_multiple)
