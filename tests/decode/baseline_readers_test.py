"""MegaByte and SpaceByte read on from caches, generate and score as their full forward pass."""

import functools

import chex
import jax
import numpy as np
import pytest
from forward import stack
from golden_cases import FLOAT32
from read_pieces import read_in_pieces
from uncached import random_params, random_text

from blt_jax import kinds, tokenizer
from blt_jax.decode import Generator, Sampling, Scorer
from blt_jax.decode.language_model import LanguageModel, from_module
from blt_jax.models.config import ByteLMConfig
from blt_jax.models.megabyte import MegaByteConfig
from blt_jax.models.spacebyte import SpaceByteConfig
from blt_jax.ops import rope

ROWS, CHUNK, LENGTH = 3, 5, 48
CONFIGS = {
  "megabyte": MegaByteConfig(stack(32, 2), stack(16, 1), patch_size=4, max_patches=64),
  "spacebyte": SpaceByteConfig(stack(16, 2, window=6), stack(24, 1), num_patches=2),
  "flat": ByteLMConfig(stack(16, 2, rope_scaling=rope.Scaling(8.0, old_context=8))),
}
PROMPTS = ["", "a b", "hello world, hello", b"\xff\xfe \xe9", "ab\n"]
each_kind = pytest.mark.parametrize("name", CONFIGS)


@functools.cache
def _model(name) -> LanguageModel:
  config = CONFIGS[name]
  return kinds.KINDS[_kind(name)].reader(kinds.build_model(config), random_params(config))


def _kind(name):
  return "byte_lm" if name == "flat" else name


@functools.cache
def _forward(name):
  """A compiled forward pass over ids [B, S], with a slot for every global position."""
  config = CONFIGS[name]
  if name == "spacebyte":
    config = SpaceByteConfig(config.local_model, config.global_model)
  model, params = kinds.build_model(config), random_params(config)
  return jax.jit(lambda tokens: model.apply({"params": params}, tokens))


@each_kind
def test_reads_as_the_full_forward(name):
  """Random pieces of each row, some followed by bytes that are taken back."""
  model = _model(name)
  text = random_text(np.random.default_rng(1), ROWS, LENGTH)
  text[:, ::5] = ord(" ") + tokenizer.OFFSET
  text[0, 10:12] = tokenizer.BOS_ID
  got, _ = read_in_pieces(model.reader, model.weights, text, CHUNK, LENGTH)
  chex.assert_trees_all_close(got, np.asarray(_forward(name)(text)), **FLOAT32)


def _log_probs(name, ids):
  """Log-probabilities [n - 1, V] of the bytes after the first of ids [n]."""
  tokens = np.zeros((1, 64), np.int32)
  tokens[0, : len(ids)] = ids
  return np.asarray(jax.nn.log_softmax(_forward(name)(tokens)[0, : len(ids) - 1]))


@each_kind
def test_generates_and_scores_what_the_model_says(name):
  """Five prompts on two rows, each continued until it ends or is full."""
  options = Sampling(max_bytes=12)
  results = Generator(_model(name), batch_size=2, prefill_chunk=5).generate(PROMPTS, options)
  for result in results:
    log_probs = _log_probs(name, np.concatenate([result.prompt, result.ids]))
    log_probs = log_probs[len(result.prompt) - 1 :]
    np.testing.assert_array_equal(result.ids, log_probs.argmax(axis=1))
    chosen = log_probs[np.arange(len(result.ids)), result.ids]
    chex.assert_trees_all_close(result.log_probs, chosen, **FLOAT32)
  totals = Scorer(_model(name), batch_size=2, chunk=7).loglikelihood_rolling(PROMPTS)
  for prompt, total in zip(PROMPTS, totals, strict=True):
    ids = tokenizer.encode(prompt, add_eos=False)
    want = _log_probs(name, ids)[np.arange(len(ids) - 1), ids[1:]].sum()
    np.testing.assert_allclose(total, want, **FLOAT32)


@each_kind
def test_a_prompt_among_others_is_continued_as_alone(name):
  options = Sampling(max_bytes=10, temperature=1.0, seed=3)
  together = Generator(_model(name), batch_size=4).generate(PROMPTS, options)
  single = Generator(_model(name), batch_size=1)
  for prompt, result in zip(PROMPTS, together, strict=True):
    (alone,) = single.generate([prompt], options)
    np.testing.assert_array_equal(alone.ids, result.ids)
    chex.assert_trees_all_close(alone.log_probs, result.log_probs, **FLOAT32)


def test_the_reader_for_any_module_gives_the_same():
  """Which needs rows of whole patches, as a MegaByte does."""
  config, options = CONFIGS["megabyte"], Sampling(max_bytes=10, temperature=1.0, seed=3)
  plain = from_module(kinds.build_model(config), random_params(config))
  for one, other in zip(
    Generator(plain).generate(PROMPTS, options),
    Generator(_model("megabyte")).generate(PROMPTS, options),
    strict=True,
  ):
    np.testing.assert_array_equal(one.ids, other.ids)


def test_a_megabyte_has_no_more_patches_than_positions():
  config = MegaByteConfig(stack(32, 1), stack(16, 1), patch_size=4, max_patches=3)
  model = kinds.KINDS["megabyte"].reader(kinds.build_model(config), random_params(config))
  short, long = Generator(model).generate(["abc", "abcdefghijkl"], Sampling(max_bytes=50))
  assert (short.finish, len(short.prompt) + len(short.ids)) == ("patches", 12)
  assert long.finish == "error" and "max_patches leaves room for (3)" in long.error
  with pytest.raises(ValueError, match="Text 1 needs more patches than max_patches"):
    Scorer(model).loglikelihood_rolling(["abc", "abcdefghijklmn"])
