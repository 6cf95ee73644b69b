"""Where numbers stand in an array, many at once."""

import numpy as np


class KeyIndex:
  """Finds keys in a hash table, where NumPy's search of a sorted array takes long."""

  def __init__(self, keys: np.ndarray):
    """Takes int64 [K], K >= 1, none twice; a quarter of the slots at most is in use."""
    self._keys, bits = keys, (4 * len(keys)).bit_length()
    self._shift, self._mask = np.uint64(64 - bits), (1 << bits) - 1
    self._slots = np.full(1 << bits, -1, np.int32)
    left, at = np.arange(len(keys), dtype=np.int32), self._start(keys)
    while len(left):
      is_free = self._slots[at] < 0
      self._slots[at[is_free]] = left[is_free]
      is_out = self._slots[at] != left
      left, at = left[is_out], (at[is_out] + 1) & self._mask

  def find(self, keys: np.ndarray) -> np.ndarray:
    """Where keys int64 [B, S] stand: int64, -1 for those that do not."""
    wanted = keys.reshape(-1)
    at = self._start(wanted)
    found = self._slots[at]
    wrong = np.flatnonzero((found >= 0) & (self._keys[found] != wanted))
    while len(wrong):
      at[wrong] = (at[wrong] + 1) & self._mask
      here = self._slots[at[wrong]]
      found[wrong] = here
      wrong = wrong[(here >= 0) & (self._keys[here] != wanted[wrong])]
    return found.reshape(keys.shape).astype(np.int64)

  def _start(self, keys: np.ndarray) -> np.ndarray:
    # The high bits of a product with 2**64 / golden ratio.
    return (keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> self._shift).astype(int)
