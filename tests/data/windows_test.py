"""Documents in windows: every id once, with as much before it as there may be."""

import numpy as np
import pytest

from blt_jax.data import windows
from blt_jax.data.pipeline import BatchShape
from blt_jax.data.transforms import PatchDocument
from blt_jax.patching import PatchingConfig


def test_windows_by_hand():
  sizes = np.array([0, 1, 1, 1, 1, 1, 1, 0])  # BOS, six bytes, EOS
  assert list(windows.cut(sizes, 9)) == [(0, 1, 8)]
  assert list(windows.cut(sizes, 6)) == [(0, 1, 8)]
  assert list(windows.cut(sizes, 4)) == [(0, 1, 6), (4, 6, 8)]
  assert list(windows.cut(sizes, 1)) == [
    (0, 1, 3), (2, 3, 4), (3, 4, 5), (4, 5, 6), (5, 6, 7), (6, 7, 8)
  ]  # fmt: skip


@pytest.mark.parametrize("most", [1, 5])
def test_each_id_is_scored_once_and_sees_what_it_may(most):
  rng = np.random.default_rng(0)
  for _ in range(200):
    sizes = rng.integers(most == 1, most + 1, rng.integers(2, 40))
    sizes[0] = sizes[-1] = 0
    context, scored = int(rng.integers(most, 20)), []
    for start, first, stop in windows.cut(sizes, context):
      for place in range(first, stop):
        seen = sizes[start:place].sum()
        assert seen <= context
        # A piece is whole or not there.
        assert seen > (context + 1) // 2 - most or start == 0
        scored.append(place)
    assert scored == list(range(1, len(sizes)))


def test_rows_of_windows():
  """Two windows of one document: what is scored, patched and left over."""
  patch = PatchDocument(PatchingConfig(scheme="static", patch_size=3))
  ids = np.array([1, *range(10, 20), 2], np.uint16)
  shape = BatchShape(
    batch_size=3, seq_len=windows.row_length(9, 4), num_patches=9, row_multiple=4
  )
  (batch,) = windows.window_batches([{"tokens": ids}], patch, shape, 8)
  assert batch["tokens"].shape == (3, 12)
  np.testing.assert_array_equal(batch["tokens"][0, :9], ids[:9])
  np.testing.assert_array_equal(batch["targets"][0, :9], ids[1:10])
  assert batch["loss_mask"][0].sum() == 9
  np.testing.assert_array_equal(batch["tokens"][1, :5], ids[6:11])
  np.testing.assert_array_equal(np.flatnonzero(batch["loss_mask"][1]), [3, 4])
  np.testing.assert_array_equal(batch["targets"][1, 3:5], [19, 2])
  assert not batch["loss_mask"][2].any()
  assert (batch["patch_lengths"].sum(axis=1) == 13).all()
  assert (batch["patch_lengths"][:, 0] == 1).all()


def test_what_no_window_can_hold():
  with pytest.raises(ValueError, match="--context must be 1 bytes or more, got 0"):
    windows.check_context(0, None)
  with pytest.raises(ValueError, match="must be 7 bytes or more, the longest piece"):
    windows.check_context(6, np.array([0, 1, 7]))
  windows.check_context(7, np.array([0, 1, 7]))
