"""The cumulative rule: a patch ends where its entropies sum to over a threshold.

Sums are of float32, from the patch's first byte on: both functions mark the same bytes.
"""

import jax
import jax.numpy as jnp
import numpy as np

_USUAL = 16  # bytes; patches as long as this are found all at once


def cumulative_rule(
  entropies: jax.Array, total: jax.Array, threshold: float
) -> tuple[jax.Array, jax.Array]:
  """Marks the bytes where the entropies since the last mark sum to over `threshold`.

  Args:
    entropies: float32 [B, S] nats.
    total: float32 [B], the sum that each row begins with.
    threshold: nats.

  Returns:
    bool [B, S], and the sums float32 [B, S] after each byte, 0 at marks.
  """

  def add(total, entropy):
    total = total + entropy
    above = total > threshold
    total = jnp.where(above, jnp.zeros_like(total), total)
    return total, (above, total)

  _, (marks, totals) = jax.lax.scan(add, total, entropies.T)
  return marks.T, totals.T


def cumulative_marks(entropies: np.ndarray, threshold: float) -> np.ndarray:
  """As `cumulative_rule` with sums that begin at 0, and without a step for each byte.

  Args:
    entropies: float32 [B, S] nats.
    threshold: nats.

  Returns:
    bool [B, S].
  """
  marks = np.zeros(entropies.shape, bool)
  for row, marked in zip(entropies, marks, strict=True):
    marked[_ends(row, threshold)] = True
  return marks


def _ends(row: np.ndarray, threshold: float) -> list[int]:
  """The last bytes of the patches of a row [S]."""
  ends_from = _near_ends(row, threshold).tolist()
  ends: list[int] = []
  start = 0
  while start < len(row):
    end = ends_from[start]
    if end < 0:
      end = _far_end(row, start, threshold)
    if end < 0:
      break
    ends.append(end)
    start = end + 1
  return ends


def _near_ends(row: np.ndarray, threshold: float) -> np.ndarray:
  """For each byte of a row [S], where a patch that starts there ends: int [S].

  -1 where it is longer than usual, or than the row.
  """
  ends = np.full(len(row), -1)
  starts, sums = np.arange(len(row)), row
  for lag in range(_USUAL):
    above = sums > threshold
    ends[starts[above]] = starts[above] + lag
    going_on = ~above & (starts + lag + 1 < len(row))
    starts, sums = starts[going_on], sums[going_on]
    sums = sums + row[starts + lag + 1]
  return ends


def _far_end(row: np.ndarray, start: int, threshold: float) -> int:
  """Where a patch ends that is as long as it likes; -1 after the row [S]."""
  total, width = np.float32(0), 4 * _USUAL
  while start < len(row):
    sums = row[start : start + width].copy()
    sums[0] += total
    np.add.accumulate(sums, out=sums)
    above = sums > threshold
    if above.any():
      return start + int(above.argmax())
    total, start, width = sums[-1], start + width, 2 * width
  return -1
