"""Entropies of documents depend on nothing but the document."""

import pickle

import flax.linen as nn
import jax
import numpy as np
import pytest
from golden_cases import SAME
from hypothesis import given, settings
from hypothesis import strategies as st

from blt_jax import tokenizer
from blt_jax.entropy import neural
from blt_jax.models import init
from blt_jax.models.byte_lm import ByteLM
from blt_jax.models.config import ByteLMConfig, TransformerConfig
from blt_jax.ops import losses

_LENGTHS = (1, 2, 31, 32, 33, 63, 64, 65, 300)


def _model(window, dtype="float32"):
  stack = TransformerConfig(16, 2, 2, window=window, mlp_multiple_of=8)
  config = ByteLMConfig(stack, dtype=dtype)
  params = init.init_params(ByteLM(config), jax.random.key(0))
  return config, nn.meta.unbox(params)


@pytest.fixture(scope="module", name="model")
def _small_model():
  return _model(window=5)


def _documents(lengths=_LENGTHS, seed=0):
  rng = np.random.default_rng(seed)
  return [rng.integers(4, 260, n).astype(np.int32) for n in lengths]


def _whole(model, tokens):
  """Entropies from one forward pass over the document."""
  config, params = model
  return losses.entropy_nats(ByteLM(config).apply({"params": params}, tokens[None]))[0]


@pytest.mark.parametrize("chunk_length", [5, 32, 64])
def test_chunks_equal_the_whole_document(model, chunk_length):
  scorer = neural.EntropyScorer(*model, chunk_length=chunk_length)
  for tokens in _documents():
    np.testing.assert_allclose(scorer(tokens), _whole(model, tokens), **SAME)


def test_prefix_scores_are_those_of_the_document_to_the_bit(model):
  (tokens,) = _documents([200])
  scorer = neural.EntropyScorer(*model, chunk_length=32)
  scores = scorer(tokens)
  for cut in (1, 31, 32, 33, 100, 199):
    np.testing.assert_array_equal(scorer(tokens[:cut]), scores[:cut])


@pytest.mark.parametrize("num_lanes", [1, 3])
def test_batch_mates_change_nothing(model, num_lanes):
  scorer = neural.BatchScorer(*model, num_lanes=num_lanes, chunk_length=32)
  documents, reported = _documents(), []
  for tokens, scores in zip(documents, scorer(documents, reported.append), strict=True):
    np.testing.assert_allclose(scores, _whole(model, tokens), **SAME)
  assert sum(reported) == sum(_LENGTHS)


def test_a_document_of_no_bytes_has_no_entropies(model):
  scorer = neural.BatchScorer(*model, num_lanes=1, chunk_length=32)
  (document,) = _documents([40])
  nothing, scores = scorer([document[:0], document])
  assert not len(nothing) and not len(scorer([document[:0]])[0])
  np.testing.assert_allclose(scores, _whole(model, document), **SAME)


def test_bfloat16_is_the_same_alone_and_in_a_batch():
  model = _model(window=64, dtype="bfloat16")
  documents = _documents()
  alone = neural.EntropyScorer(*model, chunk_length=64)
  together = neural.BatchScorer(*model, num_lanes=2, chunk_length=64)(documents)
  for tokens, scores in zip(documents, together, strict=True):
    np.testing.assert_allclose(scores, alone(tokens), atol=1e-5)


def test_context_begins_anew_after_each_newline(model):
  lines = ["first line\n", "\n", "second\n", "and the last"]
  tokens = tokenizer.encode("".join(lines))
  parts = [tokenizer.encode(line, add_bos=False, add_eos=False) for line in lines]
  parts[0], parts[-1] = np.insert(parts[0], 0, 1), np.append(parts[-1], 2).astype(np.int32)
  expected = np.concatenate([_whole(model, part) for part in parts])
  alone = neural.EntropyScorer(*model, reset_at_newline=True, chunk_length=8)
  together = neural.BatchScorer(*model, reset_at_newline=True, num_lanes=2, chunk_length=8)
  np.testing.assert_allclose(alone(tokens), expected, **SAME)
  for scores in together([tokens, tokens]):
    np.testing.assert_allclose(scores, expected, **SAME)


def test_scorers_pickle_after_use(model):
  scorer = neural.EntropyScorer(*model, chunk_length=32)
  (tokens,) = _documents([40])
  scores = scorer(tokens)
  np.testing.assert_array_equal(pickle.loads(pickle.dumps(scorer))(tokens), scores)


def test_model_without_window_is_refused():
  for scorer in (neural.EntropyScorer, neural.BatchScorer):
    with pytest.raises(ValueError, match="window"):
      scorer(*_model(window=None))


@given(st.lists(st.integers(1, 400), min_size=1, max_size=12), st.integers(1, 4))
@settings(max_examples=50)
def test_lanes_hold_every_document_once(lengths, num_lanes):
  lane, first, filled = neural.assign_lanes(lengths, num_lanes)
  total = filled.max()
  taken = np.zeros((num_lanes, total), int)
  for i, length in enumerate(lengths):
    assert first[i] % 64 == 0
    taken[lane[i], first[i] : first[i] + length] += 1
  assert taken.max() == 1 and taken.sum() == sum(lengths)
  padded = [-(-n // 64) * 64 for n in lengths]
  assert total <= sum(padded) / num_lanes + max(padded)
