"""An end-to-end BLT reads on from caches as its full forward pass."""

import dataclasses

import chex
import end_to_end_cases
import numpy as np
import pytest
from end_to_end_cases import CONFIGS, SEQ_LEN, TABLE, WITH_NGRAMS, ngram_params, run_with_ngrams
from golden_cases import FLOAT32
from read_pieces import read_in_pieces
from uncached import random_text

from blt_jax import kinds, tokenizer

ROWS, CHUNK = 5, 5


def test_reads_frequent_ngrams_as_the_full_forward():
  model = kinds.build_model(WITH_NGRAMS)
  reads = kinds.kind_of(WITH_NGRAMS).reader
  with pytest.raises(ValueError, match="pass them as ngram_tables, got"):
    reads(model, ngram_params())
  model = reads(model, ngram_params(), ngram_tables=[TABLE])
  text = random_text(np.random.default_rng(1), ROWS, SEQ_LEN)
  text[2, 9], text[2, 10] = tokenizer.EOS_ID, tokenizer.BOS_ID
  got, _ = read_in_pieces(model.reader, model.weights, text, CHUNK, SEQ_LEN)
  want, _ = run_with_ngrams(np.resize(text, (SEQ_LEN, SEQ_LEN)))
  chex.assert_trees_all_close(got, np.asarray(want[:ROWS]), **FLOAT32)


@pytest.mark.parametrize("head", CONFIGS)
def test_reads_as_the_full_forward(head):
  """Random pieces of rows of documents, some followed by bytes that are taken back.

  Its config has fewer slots than there are patches, of which reading takes no notice.
  """
  config = dataclasses.replace(CONFIGS[head], num_patches=4)
  model = kinds.kind_of(config).reader(kinds.build_model(config), end_to_end_cases.params(head))
  text = random_text(np.random.default_rng(1), ROWS, SEQ_LEN)
  got, cache = read_in_pieces(model.reader, model.weights, text, CHUNK, SEQ_LEN)
  want = end_to_end_cases.run(head, np.resize(text, (SEQ_LEN, SEQ_LEN)))
  chex.assert_trees_all_close(got, np.asarray(want.logits[:ROWS]), **FLOAT32)
  starts, _ = model.reader.patches(cache)
  for row, lengths in zip(starts, want.extras.patch_lengths[:ROWS], strict=True):
    begins = (np.cumsum(lengths) - lengths)[lengths > 0]
    np.testing.assert_array_equal(np.flatnonzero(row), begins[begins < SEQ_LEN])
