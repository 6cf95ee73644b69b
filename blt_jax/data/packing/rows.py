"""Documents into rows of S byte slots and P patch slots."""

from typing import Any

import grain
import numpy as np

from blt_jax.data.packing.document_pool import DocumentPool
from blt_jax.data.packing.open_document import OpenDocument
from blt_jax.data.packing.row_filling import RowFiller, Rows, empty_rows


class PackRows(grain.IterDataset):
  """Fills rows from documents so that few byte slots and few patch slots stay empty.

  Documents are dicts with `tokens` int [n] (BOS first, EOS last) and `patch_lengths`,
  which sum to n. A row holds `tokens` and `targets` int32 [S], `loss_mask` bool [S] and
  `patch_lengths` int32 [P], as the model takes them: they sum to S + 1 and the first is 1.
  Elements are rows, or batches of them; the last batch is filled with rows without loss.

  Every byte and every EOS is the target of exactly one position, which is in the same
  document. Rows are filled from a pool of open documents: each takes from the oldest
  one, and from others whose bytes per patch make up for it. A document that is cut goes
  on in another row from its last target; its patches are those of the document, but
  the first two ids of a piece start patches. Where a piece ends inside a row, an EOS
  without loss stands after it, so that attention stays inside documents. The end of a
  row that ran out of patch slots or of documents is padding: id 0, no loss, part of the
  last patch.

  The iterator's state is small: the state of the documents before the oldest open one,
  and a position in each open one. Resuming reads again what was read since then, on real
  text about twice `pool_size * seq_len` ids. Each row takes an eighth of its byte slots
  or of its patch slots from the oldest document, or more, or all that is left; so what
  is read again stays below about 8 S / P times `pool_size * seq_len` and twice the
  longest document.
  """

  def __init__(
    self,
    documents: grain.IterDataset,
    seq_len: int,
    num_patches: int,
    pool_size: int = 256,
    batch_size: int | None = None,
  ):
    """Takes the documents, S and P.

    Args:
      documents: to pack, in shuffled order.
      seq_len: S.
      num_patches: P, about S divided by the mean bytes per patch.
      pool_size: how many documents are open at once, unless those behind the oldest
        hold that many rows' worth of ids before. 1 keeps the documents in order.
      batch_size: B, rows of a batch; None for rows one by one.

    Raises:
      ValueError: S or P is too small for any row, a batch has no row, or no document may
        be open. Iterating raises it for documents whose patch_lengths do not sum to n.
    """
    super().__init__(documents)
    if num_patches < 3 or seq_len < 2:
      raise ValueError(
        f"Rows need seq_len >= 2 and num_patches >= 3, got {seq_len} and {num_patches}."
      )
    if pool_size < 1:
      raise ValueError(f"pool_size is {pool_size}; at least 1 document must be open.")
    if batch_size is not None and batch_size < 1:
      raise ValueError(f"batch_size is {batch_size}; a batch has at least 1 row.")
    self._documents = documents
    self._sizes = (seq_len, num_patches, pool_size, batch_size)

  def __iter__(self) -> "_PackIterator":
    """Starts from the first document."""
    return _PackIterator(self._documents.__iter__(), *self._sizes)


class _PackIterator(grain.DatasetIterator):
  def __init__(
    self,
    documents: grain.DatasetIterator,
    seq_len: int,
    num_patches: int,
    pool_size: int,
    batch_size: int | None,
  ):
    super().__init__(documents)
    self._documents = documents
    self._seq_len, self._num_patches, self._pool_size = seq_len, num_patches, pool_size
    self._batch_size = batch_size
    self._pool = DocumentPool()
    self._read = 0  # documents
    self._is_exhausted = False

  def __next__(self) -> Rows:
    if not self._fill_pool():
      raise StopIteration
    if self._batch_size is None:
      rows = self._fill_rows(1)
      return {key: array[0] for key, array in rows.items()}
    return self._fill_rows(self._batch_size)

  def _fill_rows(self, count: int) -> Rows:
    rows = empty_rows(count, self._seq_len, self._num_patches)
    for arrays in zip(*rows.values(), strict=True):
      row = RowFiller(self._pool, arrays)
      while row.has_room and self._fill_pool():
        row.add()
      row.close()
    return rows

  def _fill_pool(self) -> bool:
    """Opens as many documents as may be; returns whether there is any."""
    pool, size = self._pool, self._pool_size
    while len(pool) < size and not self._is_exhausted:
      if pool and pool.left - pool.oldest.left >= size * self._seq_len:
        break
      try:
        pool.add(self._open())
      except StopIteration:
        self._is_exhausted = True
    return len(pool) > 0

  def _open(self) -> OpenDocument:
    state = self._documents.get_state()
    document = next(self._documents)
    self._read += 1
    return OpenDocument(document, self._read - 1, state, self._num_patches)

  def get_state(self) -> dict[str, Any]:
    reader = self._pool.oldest.reader_state if self._pool else self._documents.get_state()
    return {"documents": reader, "read": self._read, "open": self._pool.marks}

  def set_state(self, state: dict[str, Any]) -> None:
    self._documents.set_state(state["documents"])
    self._pool, self._is_exhausted = DocumentPool(), False
    done = {int(i): int(d) for i, _, d in (m.partition(":") for m in state["open"].split())}
    self._read = min(done, default=state["read"])
    while self._read < state["read"]:
      try:
        document = self._open()
      except StopIteration:
        raise ValueError(
          f"The saved state has read {state['read']} documents, but there are only "
          f"{self._read}: it belongs to other documents."
        ) from None
      if document.index in done:
        document.go_on_from(done[document.index])
        self._pool.add(document)


def slot_use(rows: Rows) -> dict[str, float]:
  """How much of a row, or of a batch of rows, is used.

  Args:
    rows: `loss_mask` bool [..., S] and `patch_lengths` int [..., P].

  Returns:
    `byte_slots`, the share of positions with a target, and `patch_slots`, the share of
    patches that start no later than the last of these positions.
  """
  mask, lengths = rows["loss_mask"], rows["patch_lengths"]
  used = (mask * np.arange(1, mask.shape[-1] + 1)).max(axis=-1, keepdims=True)
  starts = np.cumsum(lengths, axis=-1) - lengths
  return {
    "byte_slots": float(mask.mean()),
    "patch_slots": float(((starts < used) & (lengths > 0)).mean()),
  }
