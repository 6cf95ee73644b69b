"""Documents into rows of S byte slots and P patch slots, so that every batch is a mixture.

Open documents take turns at even distances. A seeded choice among them, or a shuffle of
finished rows, repeats a seventh of a step's documents of 64 kB in the next step, where turns
repeat none; lanes would keep a long document open the longer, and read the more to resume.
"""

from collections.abc import Callable
from typing import Any

import grain
import numpy as np
from absl import logging

from blt_jax.data.packing.document_pool import DocumentPool
from blt_jax.data.packing.open_document import OpenDocument
from blt_jax.data.packing.row_filling import RowFiller, Rows, empty_rows

_POOL = 2048, 2**24  # documents that are open at once, and their bytes
_SLOW_POOL = 256, 2**21  # where it takes seconds to patch a MB
_ROW_DOCUMENTS, _ROW_BYTES = 32, 2**18  # for each row of a batch, at least


class PackRows(grain.IterDataset):
  """Fills rows from documents so that few byte slots and few patch slots stay empty.

  Documents are dicts with `tokens` int [n] (BOS first, EOS last) and `patch_lengths`,
  which sum to n, and may have a `loss_mask` bool [n], the ids to learn. A row holds `tokens`
  and `targets` int32 [S], `loss_mask` bool [S] and `patch_lengths` int32 [P], as the model
  takes them: they sum to S + 1 and the first is 1. Of several resolutions documents and rows
  have `patch_levels` uint8 as well, [P] in rows; see `patching.levels_of`.
  Elements are rows, or batches of them; the last batch is filled with rows without loss.
  Rows also tell where they come from: `documents` int32 [D], a number of the text of the
  document of each piece, the first 64 of them at most, 0 where there are fewer; and
  `open_documents` int32 [1], how many there were to choose from.

  Every byte and every EOS is the target of exactly one position, which is in the same
  document; a position without a target has target 0, and no loss. Rows are filled from a pool
  of open documents: each takes from the one that is due, and from others whose bytes per
  patch make up for it. A document that is cut goes on in another row from its last target;
  its patches are those of the document, but the first two ids of a piece start patches. Where
  a piece ends inside a row, an EOS without loss stands after it, so that attention stays
  inside documents. The end of a row that ran out of patch slots or of documents is padding:
  id 0, no loss, part of the last patch.

  The iterator's state is small: the state of the documents before the oldest open one,
  and of each open one its position and when it is due. Resuming reads again what was read
  since then, which is about `pool_bytes`, at most about three times that; documents of more
  than an eighth of `pool_bytes` stay open for eight times their size. With `patch` it patches
  again only what is still open.
  """

  def __init__(
    self,
    documents: grain.IterDataset,
    seq_len: int,
    num_patches: int,
    pool_size: int | None = None,
    batch_size: int | None = None,
    pool_bytes: int | None = None,
    patch: Callable[[Any], dict[str, np.ndarray]] | None = None,
    row_multiple: int = 1,
    is_slow: bool = False,
    keep_whole: bool = False,
    is_nested: bool = False,
  ):
    """Takes the documents, S and P.

    Args:
      documents: to pack, in shuffled order.
      seq_len: S.
      num_patches: P, about S divided by the mean bytes per patch.
      pool_size: how many documents are open at once; None: 2,048, or 256 where patching is
        slow, or 32 for each row of a batch if that is more. 1 keeps the documents in order.
      batch_size: B, rows of a batch; None for rows one by one.
      pool_bytes: how many ids they hold together; None: 16 MiB, or 2 MiB where patching is
        slow, or 256 KiB for each row if that is more. Eight documents may be open however long
        they are.
      patch: makes a document, as above, of what `documents` gives; None where it gives those.
        What is read again to resume, and is done, is not patched again.
      row_multiple: divides S, and the positions where pieces start: before each is padding,
        id 0 without loss, up to the next such position.
      is_slow: whether documents take long to patch; then fewer are open by default, and the
        first batch does not wait for all of them.
      keep_whole: whether only documents are cut that are longer than a row, which is said.
      is_nested: whether patches have several resolutions.

    Raises:
      ValueError: S or P is too small for any row, or S no multiple, a batch has no row, or no
        document may be open. Iterating raises it for documents whose patch_lengths do not
        sum to n.
    """
    super().__init__(documents)
    if num_patches < 3 or seq_len < 2:
      raise ValueError(
        f"Rows need seq_len >= 2 and num_patches >= 3, got {seq_len} and {num_patches}."
      )
    if row_multiple < 1 or seq_len % row_multiple:
      raise ValueError(f"seq_len {seq_len} must be a multiple of row_multiple {row_multiple}.")
    if batch_size is not None and batch_size < 1:
      raise ValueError(f"batch_size is {batch_size}; a batch has at least 1 row.")
    documents_open, bytes_open = _default_pool(batch_size or 1, is_slow)
    pool_size = documents_open if pool_size is None else pool_size
    pool_bytes = bytes_open if pool_bytes is None else pool_bytes
    if min(pool_size, pool_bytes) < 1:
      raise ValueError(
        f"pool_size is {pool_size} and pool_bytes {pool_bytes}; at least 1 document must be "
        "open."
      )
    self._documents = documents
    self._options = (
      seq_len, num_patches, pool_size, pool_bytes, batch_size, patch, row_multiple, is_slow,
      keep_whole, is_nested,
    )  # fmt: skip

  def __iter__(self) -> "_PackIterator":
    """Starts from the first document."""
    return _PackIterator(self._documents.__iter__(), *self._options)


def _default_pool(rows: int, is_slow: bool) -> tuple[int, int]:
  """How many documents are open at once, and how many ids they hold together."""
  documents, ids = _SLOW_POOL if is_slow else _POOL
  return max(documents, _ROW_DOCUMENTS * rows), max(ids, _ROW_BYTES * rows)


class _PackIterator(grain.DatasetIterator):
  def __init__(
    self,
    documents: grain.DatasetIterator,
    seq_len: int,
    num_patches: int,
    pool_size: int,
    pool_bytes: int,
    batch_size: int | None,
    patch: Callable[[Any], dict[str, np.ndarray]] | None,
    row_multiple: int,
    is_slow: bool,
    keep_whole: bool,
    is_nested: bool,
  ):
    super().__init__(documents)
    self._documents = documents
    self._seq_len, self._num_patches = seq_len, num_patches
    self._pool_size, self._pool_bytes, self._batch_size = pool_size, pool_bytes, batch_size
    self._patch, self._row_multiple, self._is_slow = patch, row_multiple, is_slow
    self._keep_whole, self._num_long, self._is_nested = keep_whole, 0, is_nested
    self._pool = self._empty_pool()
    self._read = 0  # documents
    self._row = 0  # rows made
    self._is_exhausted = False

  def __next__(self) -> Rows:
    if not self._fill_pool():
      raise StopIteration
    if self._batch_size is None:
      rows = self._fill_rows(1)
      return {key: array[0] for key, array in rows.items()}
    return self._fill_rows(self._batch_size)

  def _fill_rows(self, count: int) -> Rows:
    rows = empty_rows(count, self._seq_len, self._num_patches, self._is_nested)
    for arrays in zip(*rows.values(), strict=True):
      row = RowFiller(self._pool, arrays, self._row_multiple)
      while row.has_room and self._fill_pool() and self._add(row):
        pass
      row.close()
      self._row += 1
    return rows

  def _add(self, row: RowFiller) -> bool:
    """Gives a row more of the open documents; False where none has room in it."""
    if self._keep_whole:
      return row.add_whole()
    row.add()
    return True

  def _fill_pool(self) -> bool:
    """Opens as many documents as may be; returns whether there is any."""
    pool, most = self._pool, self._pool_bytes
    if self._is_slow:  # the first batch does not wait for all of them
      first = _ROW_BYTES * (self._batch_size or 1)
      most = min(first + 4 * self._row * self._seq_len, most)
    while len(pool) < self._pool_size and pool.size < most and not self._is_exhausted:
      try:
        pool.open(self._read_document())
      except StopIteration:
        self._is_exhausted = True
    return len(pool) > 0

  def _empty_pool(self) -> DocumentPool:
    return DocumentPool(self._seq_len, max(self._pool_bytes // 8, 1))

  def _read_document(self) -> OpenDocument:
    state = self._documents.get_state()
    document = next(self._documents)
    if self._patch is not None:
      document = self._patch(document)
    self._read += 1
    opened = OpenDocument(document, self._read - 1, state, self._num_patches)
    if self._keep_whole:
      self._report_long(opened)
    return opened

  def _report_long(self, document: OpenDocument) -> None:
    """Says that a document has no room in a row: the 1st, 10th, 100th, ... such one."""
    if document.left <= self._seq_len + 1 and document.patches_left <= self._num_patches:
      return
    self._num_long += 1
    if str(self._num_long).strip("0") == "1":
      logging.warning(
        "A document of %d ids in %d patches is cut, since a row has %d and %d: what is in "
        "later rows does not see its beginning (%d such so far). Raise config.data.seq_len "
        "and num_patches, or leave such documents out.",
        document.left, document.patches_left, self._seq_len + 1, self._num_patches,
        self._num_long,
      )  # fmt: skip

  def get_state(self) -> dict[str, Any]:
    reader = self._pool.oldest.reader_state if self._pool else self._documents.get_state()
    return {
      "documents": reader, "read": self._read, "row": self._row, "open": self._pool.marks
    }  # fmt: skip

  def set_state(self, state: dict[str, Any]) -> None:
    if missing := {"documents", "read", "open"} - state.keys():
      raise ValueError(
        f"The saved state of the data lacks {sorted(missing)}: a version too old made it, or "
        "somebody else. Start again in another config.workdir."
      )
    if "row" not in state:
      logging.warning(
        "The checkpoint is of a version that packed documents one after the other: the run "
        "goes on with all that it has not learned from, in another order."
      )
    self._documents.set_state(state["documents"])
    self._pool, self._is_exhausted = self._empty_pool(), False
    self._row = state.get("row", 0)
    marks = {int(i): rest for i, _, rest in (m.partition(":") for m in state["open"].split())}
    self._read = min(marks, default=state["read"])
    try:
      while self._read < state["read"]:
        if self._read in marks:
          self._reopen(marks[self._read])
        else:
          next(self._documents)
          self._read += 1
    except StopIteration:
      raise ValueError(
        f"The saved state has read {state['read']} documents, but there are only "
        f"{self._read}: it belongs to other documents. Give the text that the run began with, "
        "or choose another config.workdir."
      ) from None

  def _reopen(self, mark: str) -> None:
    document = self._read_document()
    done, _, due = mark.partition(":")
    document.go_on_from(int(done))
    if due:
      self._pool.restore(document, int(due))
    else:  # of an earlier version
      self._pool.open(document)


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
