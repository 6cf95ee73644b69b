"""A BLT of several resolutions reads on from caches as its full forward pass."""

import chex
import mixture_cases
import numpy as np
from golden_cases import FLOAT32
from mixture_cases import CONFIGS, ENTROPY, RULES, SEQ_LEN
from read_pieces import read_in_pieces
from uncached import random_text

from blt_jax import kinds

ROWS, CHUNK = 5, 5


def test_reads_as_the_full_forward():
  """Random pieces of rows of documents, some followed by bytes that are taken back."""
  name = "three"
  entropy_model = ENTROPY, mixture_cases.entropy_params()
  made = kinds.build_model(CONFIGS[name]), mixture_cases.params(name), RULES[name]
  model = kinds.kind_of(CONFIGS[name]).reader(*made, entropy_model)
  text = random_text(np.random.default_rng(1), ROWS, SEQ_LEN)
  got, cache = read_in_pieces(model.reader, model.weights, text, CHUNK, SEQ_LEN)
  ids = np.resize(text, (SEQ_LEN, SEQ_LEN))
  logits, _ = mixture_cases.run(name, ids)
  chex.assert_trees_all_close(got, np.asarray(logits[:ROWS]), **FLOAT32)
  starts, _ = model.reader.patches(cache)
  for row, lengths in zip(starts, mixture_cases.lengths(name, ids)[0], strict=False):
    begins = (np.cumsum(lengths) - lengths)[lengths > 0]
    np.testing.assert_array_equal(np.flatnonzero(row), begins[begins < SEQ_LEN])
