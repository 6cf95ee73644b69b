"""Rows of several resolutions: what is packed, and all lengths that models read."""

import grain
import numpy as np
import pytest

from blt_jax import patching, tokenizer
from blt_jax.data import windows
from blt_jax.data.packing.rows import PackRows
from blt_jax.data.pipeline import BatchShape
from blt_jax.data.transforms import NestPatches, PatchDocument
from blt_jax.patching import PatchingConfig

_RULE = PatchingConfig(threshold=0.0, coarser=(1.0, 2.0))
_SEQ_LEN, _PATCHES = 40, 18


def _score(tokens):
  """Entropies that the ids tell themselves: above none, one, two or three thresholds."""
  return (tokens % 4).astype(np.float32) - 0.5


def _documents(rng):
  for size in rng.integers(2, 90, 40):
    ids = rng.choice([*range(100, 116), 100, 104], size).astype(np.int32)
    ids[0], ids[-1] = tokenizer.BOS_ID, tokenizer.EOS_ID
    yield ids


def test_rows_have_the_patches_of_their_documents():
  """But the first two ids of a piece start patches, at each resolution."""
  patch = PatchDocument(_RULE, _score)
  documents = [patch.patch(ids) for ids in _documents(np.random.default_rng(0))]
  source = grain.MapDataset.source(documents).to_iter_dataset()
  rows = PackRows(source, _SEQ_LEN, _PATCHES, 8, 4, is_nested=True)
  seen = 0
  for batch in map(NestPatches(3), rows):
    lengths = batch["patch_lengths"]
    assert lengths.shape == (3, 4, _PATCHES) and lengths.dtype == np.int32
    patching.check_nested_lengths(lengths, _SEQ_LEN)
    tokens, is_target = batch["tokens"], batch["loss_mask"]
    begins = np.pad(tokens[:, :-1] == tokenizer.EOS_ID, ((0, 0), (1, 0)), constant_values=True)
    is_forced = begins | np.pad(begins[:, :-1], ((0, 0), (1, 0)))
    for resolution, own in enumerate(lengths):
      starts = np.zeros((4, _SEQ_LEN + 2), bool)
      np.put_along_axis(starts, np.cumsum(own, axis=1), True, axis=1)
      starts[:, 0] = True
      fires = np.pad(_score(tokens[:, :-1]) > resolution, ((0, 0), (1, 0)))
      np.testing.assert_array_equal(
        starts[:, :_SEQ_LEN][is_target], (fires | is_forced)[is_target]
      )
    seen += is_target.sum()
  assert seen == sum(len(document["tokens"]) - 1 for document in documents)


def test_windows_have_them_too():
  patch = PatchDocument(_RULE, _score)
  shape = BatchShape(batch_size=3, seq_len=12, num_patches=9, is_nested=True)
  ids = next(_documents(np.random.default_rng(1)))[:12]
  (batch,) = windows.window_batches([{"tokens": ids}], patch, shape, 12)
  lengths = NestPatches(3)(batch)["patch_lengths"]
  patching.check_nested_lengths(lengths, batch["tokens"].shape[1])
  entropies = _score(ids)[None]
  want = patching.nested_lengths(ids[None], _RULE, entropies, include_next=False)[:, 0]
  for own, wanted in zip(lengths[:, 0], want, strict=True):
    wanted = wanted[wanted > 0]
    np.testing.assert_array_equal(own[: len(wanted) - 1], wanted[:-1])
  assert (lengths[:, 1:, :2] == [1, batch["tokens"].shape[1]]).all()  # rows without a window


def test_a_model_of_more_resolutions_than_its_patches():
  with pytest.raises(ValueError, match="one resolution, and the model reads 2: set config"):
    NestPatches(2)({"patch_lengths": np.ones((1, 3), np.int32)})
