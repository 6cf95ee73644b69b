"""Rows hold every byte once as a target, and resume where they stopped."""

import grain
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blt_jax import patching, tokenizer
from blt_jax.data import pipeline
from blt_jax.data.packing import PackRows
from blt_jax.data.transforms import PatchDocument

_SHAPE = pipeline.BatchShape(batch_size=2, seq_len=16, num_patches=6)


def _pack(documents, seq_len, num_patches, config):
  source = grain.MapDataset.source(documents).map(PatchDocument(config))
  return PackRows(source.to_iter_dataset(), seq_len, num_patches)


def test_two_documents_in_a_row_and_a_third_cut():
  documents = [b"ab", b"c", b"defgh"]
  static = patching.PatchingConfig(scheme="static", patch_size=2)
  first, second = list(_pack(documents, 10, 9, static))
  ids = [list(tokenizer.encode(d)) for d in documents]
  np.testing.assert_array_equal(first["tokens"], ids[0] + ids[1] + ids[2][:3])
  np.testing.assert_array_equal(
    first["targets"], [*ids[0][1:], 0, *ids[1][1:], 0, *ids[2][1:4]]
  )
  np.testing.assert_array_equal(first["loss_mask"], [1, 1, 1, 0, 1, 1, 0, 1, 1, 1])
  # BOS | a | b EOS  BOS | c | EOS  BOS | d | e (f)
  np.testing.assert_array_equal(first["patch_lengths"], [1, 1, 2, 1, 1, 1, 1, 1, 2])
  # The next row starts from the last target, f.
  np.testing.assert_array_equal(second["tokens"], [*ids[2][3:], 0, 0, 0, 0, 0, 0][:10])
  np.testing.assert_array_equal(second["loss_mask"], [1, 1, 1] + [0] * 7)
  assert second["patch_lengths"][0] == 1 and second["patch_lengths"].sum() == 11


@given(
  st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=6),
  st.integers(2, 20),
  st.integers(3, 12),
  st.sampled_from(["space", "byte", "static"]),
)
def test_every_byte_is_a_target_once(documents, seq_len, num_patches, scheme):
  config = patching.PatchingConfig(scheme=scheme, patch_size=3)
  targets, inputs = [], []
  for row in _pack(documents, seq_len, num_patches, config):
    patching.check_lengths(row["patch_lengths"][None], seq_len)
    assert row["patch_lengths"].shape == (num_patches,)
    targets.extend(row["targets"][row["loss_mask"]])
    inputs.extend(row["tokens"][row["loss_mask"]])
  ids = [tokenizer.encode(d) for d in documents]
  # Each target follows its input in the same document.
  np.testing.assert_array_equal(targets, np.concatenate([i[1:] for i in ids]))
  np.testing.assert_array_equal(inputs, np.concatenate([i[:-1] for i in ids]))


@given(st.integers(0, 2**32 - 1), st.integers(3, 12))
def test_patches_are_those_of_the_document(seed, num_patches):
  rng = np.random.default_rng(seed)
  documents = [bytes(rng.choice(list(b"ab c"), 30)) for _ in range(3)]
  config = patching.PatchingConfig(scheme="space")
  starts = {}  # (document, position) -> start, for all but the forced ones of a row
  position = {d: 0 for d in range(3)}
  expected = {
    d: np.cumsum(PatchDocument(config)(text)["patch_lengths"])
    for d, text in enumerate(documents)
  }
  document = 0
  for row in _pack(documents, 12, num_patches, config):
    bounds = set(np.cumsum(row["patch_lengths"]))
    for t in range(12):
      if not row["loss_mask"][t]:
        document += row["tokens"][t] == tokenizer.EOS_ID
        continue
      if row["tokens"][t] == tokenizer.BOS_ID and t:
        assert t in bounds
      position[document] += 1
      if t >= 1:
        starts[document, position[document]] = t + 1 in bounds
      if row["targets"][t] == tokenizer.EOS_ID and t == 11:
        document += 1
  for (d, p), is_start in starts.items():
    assert is_start == (p in set(expected[d]) or p == len(documents[d]) + 2)


def test_resume_gives_the_very_next_batch():
  rng = np.random.default_rng(0)
  documents = [bytes(rng.integers(0, 256, rng.integers(1, 60))) for _ in range(20)]
  patch = PatchDocument(patching.PatchingConfig(scheme="space"))
  whole = pipeline.training_batches(documents, patch, _SHAPE, seed=3)
  batches, states = [], []
  for _ in range(60):  # several epochs
    states.append(whole.get_state())
    batches.append(next(whole))
  for i in (0, 1, 7, 30, 59):
    resumed = pipeline.training_batches(documents, patch, _SHAPE, seed=3)
    resumed.set_state(states[i])
    for k, v in next(resumed).items():
      np.testing.assert_array_equal(v, batches[i][k])


def test_order_depends_on_the_seed_and_epochs_differ():
  documents = [bytes([65 + i]) * 15 for i in range(26)]
  patch = PatchDocument(patching.PatchingConfig(scheme="byte"))
  shape = pipeline.BatchShape(26, 16, 17)

  def epochs(seed):
    batches = pipeline.training_batches(documents, patch, shape, seed)
    return [list(next(batches)["tokens"][:, 1]) for _ in range(2)]

  assert epochs(1) == epochs(1)
  assert epochs(1) != epochs(2)
  first, second = epochs(1)
  assert first != second and sorted(first) == sorted(second)


def test_last_evaluation_batch_is_filled_with_rows_that_do_not_count():
  patch = PatchDocument(patching.PatchingConfig(scheme="space"))
  batches = list(pipeline.evaluation_batches([b"x" * 20, b"y z" * 8], patch, _SHAPE))
  for batch in batches:
    assert batch["tokens"].shape == (2, 16)
    patching.check_lengths(batch["patch_lengths"], 16)
  assert sum(b["loss_mask"].sum() for b in batches) == 20 + 24 + 2


def test_too_few_patches_is_an_error():
  with pytest.raises(ValueError, match="num_patches >= 3"):
    _pack([b"a"], 8, 2, patching.PatchingConfig(scheme="byte"))
