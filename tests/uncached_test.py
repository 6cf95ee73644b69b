"""Generation against the full forward pass."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blt_jax import patching, tokenizer, train_state
from blt_jax.decode import uncached
from blt_jax.models.byte_lm import ByteLM
from blt_jax.models.config import ByteLMConfig, TransformerConfig

_CONFIG = ByteLMConfig(TransformerConfig(16, 1, 2, window=8, mlp_multiple_of=8))
_PROMPT = tokenizer.encode("ab", add_eos=False)


@pytest.fixture(scope="module", name="predict")
def _predict():
  params = train_state.init_params(ByteLM(_CONFIG), jax.random.key(0))
  return uncached.byte_lm_predictor(ByteLM(_CONFIG), nn.meta.unbox(params))


def test_greedy_takes_the_likeliest_byte(predict):
  new = uncached.generate(predict, _PROMPT, 6, uncached.Sampling())
  tokens = _PROMPT
  for token in new:
    assert token == int(jnp.argmax(predict(tokens[None])[0, -1]))
    tokens = np.append(tokens, token)


def test_stops_after_the_end_of_the_document():
  def predict(tokens):
    likely = jnp.where(jnp.arange(tokens.shape[1]) >= 4, tokenizer.EOS_ID, 100)
    return jax.nn.one_hot(likely, tokenizer.VOCAB_SIZE)[None]

  new = uncached.generate(predict, _PROMPT, 50, uncached.Sampling())
  np.testing.assert_array_equal(new, [100, 100, tokenizer.EOS_ID])


def test_draws_follow_the_distribution():
  """Three bytes of probability .5, .3 and .2; top_p .6 leaves the first two."""
  logits = (
    jnp.full(tokenizer.VOCAB_SIZE, -1e9)
    .at[jnp.array([50, 60, 70])]
    .set(jnp.log(jnp.array([0.5, 0.3, 0.2])))
  )

  def predict(tokens):
    return jnp.broadcast_to(logits, (1, tokens.shape[1], tokenizer.VOCAB_SIZE))

  def shares(**settings):
    new = uncached.generate(predict, _PROMPT, 4000, uncached.Sampling(**settings))
    return [np.mean(new == token) for token in (50, 60, 70)]

  np.testing.assert_allclose(shares(temperature=1.0), [0.5, 0.3, 0.2], atol=0.03)
  np.testing.assert_allclose(shares(temperature=1.0, top_p=0.6), [0.625, 0.375, 0], atol=0.03)
  assert shares(temperature=1.0, seed=1) == shares(temperature=1.0, seed=1)
  assert shares(temperature=1.0, seed=1) != shares(temperature=1.0, seed=2)


def test_mistakes_are_named(predict):
  with pytest.raises(ValueError, match="prompt is empty"):
    uncached.generate(predict, np.zeros(0, np.int32), 3, uncached.Sampling())
  with pytest.raises(ValueError, match="temperature.*-1"):
    uncached.Sampling(temperature=-1)
  with pytest.raises(ValueError, match="Top-k"):
    rule = patching.PatchingConfig(threshold=None, patch_size=4)
    uncached.blt_predictor(None, None, rule, predict)
  with pytest.raises(ValueError, match="entropy model"):
    uncached.blt_predictor(None, None, patching.PatchingConfig())
