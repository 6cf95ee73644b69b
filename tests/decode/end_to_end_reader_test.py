"""An end-to-end BLT reads on from caches, and generates, as its full forward pass."""

import dataclasses
import functools

import chex
import end_to_end_cases
import jax
import numpy as np
import pytest
from end_to_end_cases import CONFIGS, SEQ_LEN
from golden_cases import FLOAT32
from uncached import random_text

from blt_jax import kinds, tokenizer
from blt_jax.decode import Generator, Sampling

ROWS, CHUNK = 5, 5


@functools.cache
def _model(head):
  """With caches; of a config with fewer slots than patches, of which it takes no notice."""
  config = dataclasses.replace(CONFIGS[head], num_patches=4)
  model = kinds.build_model(config)
  return kinds.kind_of(config).reader(model, end_to_end_cases.params(head))


@pytest.mark.parametrize("head", CONFIGS)
def test_reads_as_the_full_forward(head):
  """Random pieces of rows of documents, some followed by bytes that are taken back."""
  rng, model = np.random.default_rng(0), _model(head)
  text = random_text(np.random.default_rng(1), ROWS, SEQ_LEN)
  read = jax.jit(model.reader.read)
  cache, position = model.reader.init(ROWS, SEQ_LEN, CHUNK), np.zeros(ROWS, int)
  got = np.zeros((*text.shape, 260), np.float32)
  while (position < SEQ_LEN).any():
    count = np.minimum(rng.integers(0, CHUNK + 1, ROWS), SEQ_LEN - position)
    kept = np.minimum(rng.integers(0, CHUNK + 1, ROWS), count)
    piece = rng.integers(0, 260, (ROWS, CHUNK)).astype(np.int32)
    for row, (begin, number) in enumerate(zip(position, kept, strict=True)):
      piece[row, :number] = text[row, begin : begin + number]
    logits, pending = read(model.weights, cache, piece, count)
    for row, (begin, number) in enumerate(zip(position, kept, strict=True)):
      got[row, begin : begin + number] = logits[row, :number]
    cache, position = pending.commit(kept), position + kept
  want = end_to_end_cases.run(head, np.resize(text, (SEQ_LEN, SEQ_LEN)))
  chex.assert_trees_all_close(got, np.asarray(want.logits[:ROWS]), **FLOAT32)
  starts, _ = model.reader.patches(cache)
  for row, lengths in zip(starts, want.extras.patch_lengths[:ROWS], strict=True):
    begins = (np.cumsum(lengths) - lengths)[lengths > 0]
    np.testing.assert_array_equal(np.flatnonzero(row), begins[begins < SEQ_LEN])


def test_generates_what_the_model_says():
  """Two prompts, each continued until it ends; with the head whose patches are known late."""
  options = Sampling(max_bytes=8)
  prompts = ["", b"\xff ab"]
  for result in Generator(_model("backward"), prefill_chunk=5).generate(prompts, options):
    ids = np.full((SEQ_LEN, SEQ_LEN), tokenizer.BOE_ID, np.int32)
    whole = np.concatenate([result.prompt, result.ids])
    ids[:, : len(whole)] = whole
    found = end_to_end_cases.run("backward", ids)
    logits = found.logits[0, len(result.prompt) - 1 : len(whole) - 1]
    np.testing.assert_array_equal(result.ids, logits.argmax(axis=1))
    chosen = np.asarray(jax.nn.log_softmax(logits))[np.arange(len(result.ids)), result.ids]
    chex.assert_trees_all_close(result.log_probs, chosen, **FLOAT32)
