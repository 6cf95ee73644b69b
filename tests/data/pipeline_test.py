"""Batches do not depend on workers or prefetching, and resume exactly."""

import grain
import numpy as np
import pytest
from absl import flags

from blt_jax import patching
from blt_jax.data import mixture, pipeline, workers
from blt_jax.data.reading.documents import Document
from blt_jax.data.transforms import PatchDocument

_SHAPE = pipeline.BatchShape(batch_size=2, seq_len=32, num_patches=12, pool_size=8)
_PATCH = PatchDocument(patching.PatchingConfig(scheme="space"))


class Texts:
  """Documents, some of them skipped."""

  def __init__(self):
    rng = np.random.default_rng(0)
    sizes = rng.integers(0, 60, 50)
    self.texts = [bytes(rng.integers(97, 123, n).astype(np.uint8)) for n in sizes]

  def __len__(self):
    return len(self.texts)

  def __getitem__(self, index):
    return Document(self.texts[index]) if index % 7 else None


def _documents():
  return mixture.mix({"texts": (grain.MapDataset.source(Texts()), 1.0)}, seed=3)


def _batches(num_workers):
  flags.FLAGS.mark_as_parsed()  # Grain's worker processes read flags
  return pipeline.training_batches(_documents(), _PATCH, _SHAPE, num_workers)


def _assert_equal(a, b):
  for x, y in zip(a, b, strict=True):
    assert x.keys() == y.keys()
    for key in x:
      np.testing.assert_array_equal(x[key], y[key])


def _take(iterator, count):
  return [next(iterator) for _ in range(count)]


@pytest.fixture(scope="module", name="expected")
def _expected():
  return _take(iter(_batches(0)), 30)


def test_workers_change_nothing_and_their_number_may(expected):
  first = pipeline.prefetch(_batches(2), lambda batch: batch)
  _assert_equal(_take(first, 12), expected[:12])
  state = first.get_state()
  first.close()
  again = pipeline.prefetch(_batches(0), lambda batch: batch)
  again.set_state(state)
  _assert_equal(_take(again, 18), expected[12:])
  again.close()


def test_state_is_that_after_the_last_batch_taken(expected):
  for taken in (0, 1, 7):
    batches = pipeline.prefetch(_batches(0), lambda batch: batch)
    _take(batches, taken)
    state = batches.get_state()
    batches.close()
    again = iter(pipeline.prefetch(_batches(0), lambda batch: batch))
    again.set_state(state)
    _assert_equal([next(again)], [expected[taken]])
    again.close()


def test_workers_use_the_cpu_only():
  flags.FLAGS.mark_as_parsed()
  numbers = grain.MapDataset.range(2)
  results = workers.transform(numbers, _describe_jax, num_workers=1)
  iterator = iter(results)
  assert list(iterator) == ["cpu", "cpu"]
  iterator.close()


def _describe_jax(number):
  import jax

  del number
  return jax.config.jax_platforms


def test_stored_entropies_stand_in_for_a_scorer():
  rule = patching.PatchingConfig(threshold=1.0)
  entropies = np.array([0, 0, 2, 0, 0], np.float16)
  patched = PatchDocument(rule)(Document(b"abc", entropies))
  np.testing.assert_array_equal(patched["patch_lengths"], [1, 2, 2])
  with pytest.raises(ValueError, match="needs entropies"):
    PatchDocument(rule)(Document(b"abc"))


def test_last_evaluation_batch_is_filled_with_rows_that_do_not_count():
  texts = [Document(b"x" * 20), Document(b"y z" * 8)]
  documents = mixture.mix({"a": (grain.MapDataset.source(texts), 1.0)}, seed=None, num_epochs=1)
  batches = list(pipeline.evaluation_batches(documents, _PATCH, _SHAPE))
  for batch in batches:
    assert batch["tokens"].shape == (2, 32)
    patching.check_lengths(batch["patch_lengths"], 32)
  assert sum(b["loss_mask"].sum() for b in batches) == 20 + 24 + 2
