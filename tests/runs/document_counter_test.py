"""Documents of a step are counted over all devices, and few of them are said."""

import jax
import numpy as np
import pytest

from blt_jax.parallel import sharding
from blt_jax.runs import metrics
from blt_jax.runs.document_counter import DocumentCounter


@pytest.mark.skipif(jax.device_count() < 4, reason="needs the fake devices of conftest.py")
def test_counts_are_those_of_sets():
  mesh = sharding.make_mesh(devices=jax.devices()[:4])
  count, rng, before = DocumentCounter(mesh, num_streams=2), np.random.default_rng(0), set()
  for _ in range(3):
    documents = rng.integers(0, 30, (8, 5)).astype(np.int32)
    batch = {"documents": documents, "open_documents": np.full((8, 1), 6, np.int32)}
    batch = sharding.put_batch(batch | {"tokens": documents}, mesh)
    counts = jax.device_get(count(batch))
    names = set(documents.ravel().tolist()) - {0}
    assert counts == {
      "documents": len(names),
      "documents_repeated": len(names & before),
      "documents_open": 12,
      "batches": 1,
      "rows": 8,
    }
    assert set(batch) == {"tokens"}
    before = names


_SUMS = dict(
  nats=60.0, targets=22, bytes=20, inputs=22, patches=11, one_byte_patches=3, byte_slots=40,
  patch_slots=22, documents=14, documents_repeated=7, documents_open=80, batches=2, rows=16,
  read_targets=22,
)  # fmt: skip


def test_counts_become_a_mean_and_a_share():
  numbers = metrics.summarise(_SUMS)
  assert numbers["documents_per_batch"] == 7 and numbers["documents_repeated"] == 0.5


@pytest.mark.parametrize(
  ("counts", "is_few"),
  [
    (dict(documents=4, documents_repeated=2), False),  # 2 of 8 rows
    (dict(documents=3), True),
    (
      dict(documents=2, documents_open=8, documents_repeated=1),
      False,
    ),  # 1 of the 4 that are open
    (dict(documents=4, rows=128), True),
    (dict(documents_repeated=6), False),
    (dict(documents_repeated=8), True),  # of 14
  ],
)
def test_less_than_a_quarter_of_the_rows_or_open_documents_is_few(counts, is_few, caplog):
  assert metrics.warn_of_few_documents(_SUMS | counts) == is_few
  assert ("different documents on average" in caplog.text) == is_few
