"""Documents into rows of S byte slots and P patch slots."""

from typing import Any

import grain
import numpy as np

Row = dict[str, np.ndarray]


class PackRows(grain.IterDataset):
  """Fills rows from documents, in order, cutting a document only where a row is full.

  Documents are dicts with `tokens` int [n] (BOS first, EOS last) and `patch_lengths`,
  which sum to n. A row holds `tokens` and `targets` int32 [S], `loss_mask` bool [S] and
  `patch_lengths` int32 [P], as the model takes them: they sum to S + 1 and the first is 1.

  Every byte and every EOS is the target of exactly one position, which is in the same
  document; a document that continues in the next row does so from its last target. The
  end of a row that ran out of patch slots, and of the last row, is padding: id 0, no
  loss, part of the last patch.
  """

  def __init__(self, documents: grain.IterDataset, seq_len: int, num_patches: int):
    """Takes the documents, S and P.

    Raises:
      ValueError: P is too small for any row.
    """
    super().__init__(documents)
    if num_patches < 3 or seq_len < 2:
      raise ValueError(
        f"Rows need seq_len >= 2 and num_patches >= 3, got {seq_len} and {num_patches}."
      )
    self._documents = documents
    self._sizes = (seq_len, num_patches)

  def __iter__(self) -> "_PackIterator":
    """Starts from the first document."""
    return _PackIterator(self._documents.__iter__(), *self._sizes)


class _PackIterator(grain.DatasetIterator):
  """Its state: where the open document is, and how many of its ids are done."""

  def __init__(self, documents: grain.DatasetIterator, seq_len: int, num_patches: int):
    super().__init__(documents)
    self._documents = documents
    self._seq_len, self._num_patches = seq_len, num_patches
    self._before_open = documents.get_state()
    self._document: Row | None = None
    self._done = 0

  def __next__(self) -> Row:
    row = _OpenRow(self._seq_len, self._num_patches)
    while not row.is_full:
      try:
        document = self._open()
      except StopIteration:
        if row.used:
          break
        raise
      self._done += row.add(document, self._done)
      if self._done >= len(document["tokens"]) - 1:  # what is left has no target
        self._document, self._done = None, 0
    return row.close()

  def _open(self) -> Row:
    if self._document is None:
      self._before_open = self._documents.get_state()
      document = next(self._documents)
      starts = np.zeros(len(document["tokens"]), bool)
      ends = np.cumsum(document["patch_lengths"])
      starts[np.concatenate([[0], ends[ends < len(starts)]])] = True
      self._document = {"tokens": document["tokens"], "starts": starts}
    return self._document

  def get_state(self) -> dict[str, Any]:
    is_open = self._document is not None
    state = self._before_open if is_open else self._documents.get_state()
    return {"documents": state, "done": self._done}

  def set_state(self, state: dict[str, Any]) -> None:
    self._documents.set_state(state["documents"])
    self._document, self._done = None, state["done"]


class _OpenRow:
  """A row being filled."""

  def __init__(self, seq_len: int, num_patches: int):
    self.used = 0
    self.is_full = False
    self._free_patches = num_patches
    self._num_patches = num_patches
    self._tokens = np.zeros(seq_len, np.int32)
    self._targets = np.zeros(seq_len, np.int32)
    self._mask = np.zeros(seq_len, bool)
    self._starts = np.zeros(seq_len + 1, bool)

  def add(self, document: Row, done: int) -> int:
    """Takes as many ids as fit from position `done` on; returns how many."""
    tokens, starts = document["tokens"][done:], document["starts"][done:].copy()
    if self.used == 0:
      starts[:2] = True  # the first patch of a row has one byte
    room = min(len(self._tokens) - self.used, len(tokens))
    # The byte after the last one taken says whether it starts a patch: one more slot.
    needed = np.cumsum(np.append(starts, False)[: room + 1])
    count = int(np.searchsorted(needed, self._free_patches, side="right")) - 1
    if count < 0:
      self.is_full = True
      return 0
    # From here on, `count` ids and the bit of the next one fit.
    here = slice(self.used, self.used + count)
    targets = tokens[1 : count + 1]
    self._tokens[here] = tokens[:count]
    self._targets[here][: len(targets)] = targets
    self._mask[here][: len(targets)] = True
    following = starts[: count + 1]
    self._starts[self.used : self.used + len(following)] = following
    self._free_patches -= int(following[:count].sum())
    self.used += count
    self.is_full = count < len(tokens)
    return count

  def close(self) -> Row:
    starts = np.flatnonzero(self._starts)
    lengths = np.zeros(self._num_patches, np.int32)
    lengths[: len(starts)] = np.diff(starts, append=len(self._starts))
    return {
      "tokens": self._tokens,
      "targets": self._targets,
      "loss_mask": self._mask,
      "patch_lengths": lengths,
    }
