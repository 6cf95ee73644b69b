"""An end-to-end BLT reads on from caches, and generates, as its full forward pass."""

import dataclasses
import functools

import chex
import jax
import numpy as np
import pytest
from forward import TINY, stack
from golden_cases import FLOAT32
from uncached import random_params, random_text

from blt_jax import kinds, tokenizer
from blt_jax.decode import Generator, Sampling
from blt_jax.models.end_to_end import EndToEndConfig

ROWS, CHUNK, LENGTH = 3, 5, 40
_BLT = {field.name: getattr(TINY, field.name) for field in dataclasses.fields(TINY)}
_NEXT = EndToEndConfig(**_BLT, predictor=stack(16, 1, window=6), threshold=4.5, num_patches=4)
CONFIGS = {
  "next": _NEXT,
  "backward": dataclasses.replace(
    _NEXT, head="backward", backward_bytes=3, skip=False, hash_sizes=()
  ),
}
each_head = pytest.mark.parametrize("head", CONFIGS)


@functools.cache
def _params(head):
  """Random parameters, sharpened so that half of the entropies are above the threshold."""
  params = random_params(CONFIGS[head])
  params["predictor"]["output"]["kernel"] *= 1.5
  return params


@functools.cache
def _model(head):
  return kinds.KINDS["end_to_end"].reader(kinds.build_model(CONFIGS[head]), _params(head))


@functools.cache
def _forward(head):
  """The compiled forward pass of ids [ROWS, LENGTH], with slots for all patches."""
  model = kinds.build_model(kinds.KINDS["end_to_end"].unlimited(CONFIGS[head]))
  params = {"params": _params(head)}
  return jax.jit(lambda tokens: model.apply(params, tokens, method="forward"))


@each_head
def test_reads_as_the_full_forward(head):
  """Random pieces of rows of documents, some followed by bytes that are taken back."""
  rng, model = np.random.default_rng(0), _model(head)
  text = random_text(np.random.default_rng(1), ROWS, LENGTH)
  read = jax.jit(model.reader.read)
  cache, position = model.reader.init(ROWS, LENGTH, CHUNK), np.zeros(ROWS, int)
  got = np.zeros((*text.shape, 260), np.float32)
  while (position < LENGTH).any():
    count = np.minimum(rng.integers(0, CHUNK + 1, ROWS), LENGTH - position)
    kept = np.minimum(rng.integers(0, CHUNK + 1, ROWS), count)
    piece = rng.integers(0, 260, (ROWS, CHUNK)).astype(np.int32)
    for row, (begin, number) in enumerate(zip(position, kept, strict=True)):
      piece[row, :number] = text[row, begin : begin + number]
    logits, pending = read(model.weights, cache, piece, count)
    for row, (begin, number) in enumerate(zip(position, kept, strict=True)):
      got[row, begin : begin + number] = logits[row, :number]
    cache, position = pending.commit(kept), position + kept
  want, extras = _forward(head)(text)
  chex.assert_trees_all_close(got, np.asarray(want), **FLOAT32)
  starts, _ = model.reader.patches(cache)
  for row, lengths in zip(starts, extras.patch_lengths, strict=True):
    begins = (np.cumsum(lengths) - lengths)[lengths > 0]
    np.testing.assert_array_equal(np.flatnonzero(row), begins[begins < LENGTH])


@each_head
def test_generates_what_the_model_says(head):
  """Two prompts, each continued until it ends."""
  options = Sampling(max_bytes=8)
  prompts = ["", b"\xff ab"]
  for result in Generator(_model(head), prefill_chunk=5).generate(prompts, options):
    ids = np.full((ROWS, LENGTH), tokenizer.BOE_ID, np.int32)
    whole = np.concatenate([result.prompt, result.ids])
    ids[:, : len(whole)] = whole
    logits = _forward(head)(ids)[0][0, len(result.prompt) - 1 : len(whole) - 1]
    np.testing.assert_array_equal(result.ids, logits.argmax(axis=1))
    chosen = np.asarray(jax.nn.log_softmax(logits))[np.arange(len(result.ids)), result.ids]
    chex.assert_trees_all_close(result.log_probs, chosen, **FLOAT32)
