"""Entropies of documents do not depend on how they are cut."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from blt_jax import train_state
from blt_jax.data.entropy import EntropyScorer
from blt_jax.models.byte_lm import ByteLM
from blt_jax.models.config import ByteLMConfig, TransformerConfig
from blt_jax.ops import losses


def _model(window):
  config = ByteLMConfig(TransformerConfig(16, 2, 2, window=window, mlp_multiple_of=8))
  params = train_state.init_params(ByteLM(config), jax.random.key(0))
  return config, nn.meta.unbox(params)


@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 64, 300])
def test_chunks_equal_the_whole_document(length):
  config, params = _model(window=5)
  tokens = np.random.default_rng(length).integers(4, 260, length).astype(np.int32)
  scores = EntropyScorer(config, params, chunk_length=32)(tokens)
  logits = ByteLM(config).apply({"params": params}, tokens[None])
  np.testing.assert_allclose(scores, losses.entropy_nats(logits)[0], atol=1e-5)


def test_prefix_scores_are_those_of_the_document_to_the_bit():
  config, params = _model(window=5)
  tokens = np.random.default_rng(0).integers(4, 260, 200).astype(np.int32)
  scorer = EntropyScorer(config, params, chunk_length=32)
  scores = scorer(tokens)
  for cut in (1, 31, 32, 33, 100, 199):
    np.testing.assert_array_equal(scorer(tokens[:cut]), scores[:cut])


def test_model_without_window_is_refused():
  with pytest.raises(ValueError, match="window"):
    EntropyScorer(*_model(window=None))
