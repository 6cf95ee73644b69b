"""A model that nothing knows generates and is scored through the reader for any module."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import FLOAT32
from read_pieces import read_in_pieces
from uncached import random_text

from blt_jax import tokenizer
from blt_jax.decode import Drafting, Generator, Sampling, Scorer
from blt_jax.decode.language_model import from_module

PROMPTS = ["", "a", "hello world", b"\xff\xfe" * 8, "ab\n"]
ROWS, CHUNK = 3, 4


class Toy(nn.Module):
  """Predicts from the mean of what it has seen, and from the last byte."""

  @nn.compact
  def __call__(self, tokens, patch_lengths=None):
    x = nn.Embed(260, 32)(tokens)
    mean = jnp.cumsum(x, axis=1) / (1 + jnp.arange(x.shape[1]))[None, :, None]
    return 2 * nn.Dense(260)(jnp.sin(9 * x + 40 * mean))


@functools.cache
def toy_params():
  return Toy().init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]


@functools.cache
def model():
  return from_module(Toy(), toy_params())


def log_probs_of(ids):
  """Log-probabilities [n - 1, V] of the bytes after the first of ids [n], by the model."""
  logits = Toy().apply({"params": toy_params()}, ids[None])[0, :-1]
  return np.asarray(jax.nn.log_softmax(logits))


def test_generates_what_the_model_says():
  """Five prompts on two rows, each continued until it ends or is full."""
  results = Generator(model(), batch_size=2, prefill_chunk=4).generate(
    PROMPTS, Sampling(max_bytes=12)
  )
  for result in results:
    log_probs = log_probs_of(np.concatenate([result.prompt, result.ids]))
    log_probs = log_probs[len(result.prompt) - 1 :]
    np.testing.assert_array_equal(result.ids, log_probs.argmax(axis=1))
    log_probs = log_probs[np.arange(len(result.ids)), result.ids]
    chex.assert_trees_all_close(result.log_probs, log_probs, **FLOAT32)
    assert result.finish == "end" or len(result.ids) == 12
    assert result.starts is None and result.entropies is None
  assert len({tuple(r.ids) for r in results}) > 2


def test_scores_what_the_model_says():
  totals = Scorer(model(), batch_size=2, chunk=16).loglikelihood_rolling(PROMPTS)
  for prompt, total in zip(PROMPTS, totals, strict=True):
    ids = tokenizer.encode(prompt, add_eos=False)
    want = log_probs_of(ids)[np.arange(len(ids) - 1), ids[1:]].sum()
    np.testing.assert_allclose(total, want, **FLOAT32)


def test_bytes_are_taken_back():
  """Rows read pieces of their own, of which wrong bytes at the end are not committed."""
  text = random_text(np.random.default_rng(1), ROWS, 30)
  reader, weights = model().reader, model().weights
  got, cache = read_in_pieces(reader, weights, text, CHUNK, 32)
  want = np.asarray(Toy().apply({"params": weights}, text))
  np.testing.assert_allclose(got, want, **FLOAT32)
  np.testing.assert_array_equal(cache.cursor, 30)


def test_drafts_are_refused():
  with pytest.raises(ValueError, match="needs a BLT of one resolution"):
    Generator(model(), drafting=Drafting())
