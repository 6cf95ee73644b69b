"""An end-to-end BLT reads on from caches as its full forward pass."""

import dataclasses

import chex
import end_to_end_cases
import jax
import numpy as np
import pytest
from end_to_end_cases import CONFIGS, SEQ_LEN
from golden_cases import FLOAT32
from uncached import random_text

from blt_jax import kinds

ROWS, CHUNK = 5, 5


@pytest.mark.parametrize("head", CONFIGS)
def test_reads_as_the_full_forward(head):
  """Random pieces of rows of documents, some followed by bytes that are taken back.

  Its config has fewer slots than there are patches, of which reading takes no notice.
  """
  config = dataclasses.replace(CONFIGS[head], num_patches=4)
  model = kinds.kind_of(config).reader(kinds.build_model(config), end_to_end_cases.params(head))

  @jax.jit
  def read(cache, piece, count, kept):
    logits, pending = model.reader.read(model.weights, cache, piece, count)
    return logits, pending.commit(kept)

  rng = np.random.default_rng(0)
  text = random_text(np.random.default_rng(1), ROWS, SEQ_LEN)
  cache, position = model.reader.init(ROWS, SEQ_LEN, CHUNK), np.zeros(ROWS, int)
  got = np.zeros((*text.shape, 260), np.float32)
  while (position < SEQ_LEN).any():
    count = np.minimum(rng.integers(0, CHUNK + 1, ROWS), SEQ_LEN - position)
    kept = np.minimum(rng.integers(0, CHUNK + 1, ROWS), count)
    piece = rng.integers(0, 260, (ROWS, CHUNK)).astype(np.int32)
    for row, (begin, number) in enumerate(zip(position, kept, strict=True)):
      piece[row, :number] = text[row, begin : begin + number]
    logits, cache = read(cache, piece, count, kept)
    for row, (begin, number) in enumerate(zip(position, kept, strict=True)):
      got[row, begin : begin + number] = logits[row, :number]
    position = position + kept
  want = end_to_end_cases.run(head, np.resize(text, (SEQ_LEN, SEQ_LEN)))
  chex.assert_trees_all_close(got, np.asarray(want.logits[:ROWS]), **FLOAT32)
  starts, _ = model.reader.patches(cache)
  for row, lengths in zip(starts, want.extras.patch_lengths[:ROWS], strict=True):
    begins = (np.cumsum(lengths) - lengths)[lengths > 0]
    np.testing.assert_array_equal(np.flatnonzero(row), begins[begins < SEQ_LEN])
