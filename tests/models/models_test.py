"""Properties that all models share, and errors."""

import dataclasses
import functools

import chex
import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forward import TINY, init, intermediates, logits_of, loss_and_gradient, pad_lengths, stack
from golden_cases import BFLOAT16, SAME
from hypothesis import given, settings
from hypothesis import strategies as st

from blt_jax import patching, tokenizer
from blt_jax.models.blt import BLT
from blt_jax.models.byte_lm import ByteLM
from blt_jax.models.config import (
  ByteLMConfig,
  CrossAttentionConfig,
)
from blt_jax.ops import losses
from blt_jax.patching import PatchingConfig

SEQ_LEN = 20  # bytes in a row, and rows in a batch


DEEP = dataclasses.replace(
  TINY, encoder=stack(16, 2, window=5), latent=stack(32, 2), decoder=stack(16, 2, window=5)
)
ONCE = CrossAttentionConfig(4)
VARIANTS = {
    "meta": DEEP,
    "hf": dataclasses.replace(
        DEEP, repool=True, document_masks=False, latent_document_masks=False,
        hash_document_masks=False),
    "one read": dataclasses.replace(DEEP, encoder_cross=ONCE, decoder_cross=ONCE),
    "windows": dataclasses.replace(
        TINY,
        encoder_cross=CrossAttentionConfig(4, window=2, all_layers=True),
        decoder_cross=CrossAttentionConfig(4, window=3)),
    "pooled": dataclasses.replace(
        TINY, encoder_cross=None, decoder_cross=None, pooling="avg_max", hash_sizes=()),
    "unprojected": dataclasses.replace(
        TINY, project_latent=False, pooling="min", hash_functions=2),
    "grouped heads": dataclasses.replace(
        TINY,
        encoder=stack(16, 1, num_kv_heads=2),
        latent=stack(24, 1, num_kv_heads=1, head_dim=4),
        decoder=stack(16, 1, num_kv_heads=2),
        encoder_cross=CrossAttentionConfig(4, num_kv_heads=2),
        vectors_per_patch=4),
    "tied": dataclasses.replace(
        TINY, tie_embeddings=True, ngram_vocab_sizes=(9, 12), latent_document_masks=False),
}  # fmt: skip


@functools.cache
def tiny_params(name):
  """Random parameters, without compiling an initialisation."""
  batch = random_batch(0, VARIANTS[name])
  shapes = jax.eval_shape(BLT(VARIANTS[name]).init, jax.random.key(0), *batch)
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    mean = float("scale" in jax.tree_util.keystr(path))
    return rng.normal(mean, 0.25, leaf.shape).astype(np.float32)

  return jax.tree.map_with_path(draw, nn.meta.unbox(shapes)["params"])


def random_batch(seed, config):
  """Tokens, some of them EOS, with patches that depend on prefixes, and n-gram ids."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(4, 260, (SEQ_LEN, SEQ_LEN)).astype(np.int32)
  tokens[rng.random(tokens.shape) < 0.1] = tokenizer.EOS_ID
  entropies = rng.random(tokens.shape, np.float32)
  lengths = patching.patch_lengths(tokens, PatchingConfig(threshold=0.6), entropies)
  sizes = np.array(config.ngram_vocab_sizes)[:, None, None]
  ngram_ids = rng.integers(0, 2**31, (len(sizes), *tokens.shape)) % sizes
  ngram_ids = ngram_ids if len(sizes) else None
  return tokens, pad_lengths(lengths, SEQ_LEN, SEQ_LEN + 1), ngram_ids


def run_tiny(name, tokens, lengths, ngram_ids):
  return np.asarray(logits_of(VARIANTS[name], tiny_params(name), tokens, lengths, ngram_ids))


each_variant = pytest.mark.parametrize("name", VARIANTS)
seeds = given(seed=st.integers(0, 2**32 - 1))


@each_variant
@settings(max_examples=15)
@seeds
def test_rows_do_not_depend_on_each_other(name, seed):
  tokens, lengths, ngram_ids = random_batch(seed, VARIANTS[name])
  together = run_tiny(name, tokens, lengths, ngram_ids)
  others, other_lengths, other_ngrams = random_batch(seed + 1, VARIANTS[name])
  others[1], other_lengths[1] = tokens[1], lengths[1]
  if ngram_ids is not None:
    other_ngrams[:, 1] = ngram_ids[:, 1]
  mixed = run_tiny(name, others, other_lengths, other_ngrams)
  chex.assert_trees_all_close(mixed[1], together[1], **SAME)


@each_variant
@settings(max_examples=15)
@seeds
def test_logits_of_a_prefix_are_those_of_the_whole(name, seed):
  """What follows a prefix, whatever its bytes and patches, changes none of its logits."""
  tokens, lengths, ngram_ids = random_batch(seed, VARIANTS[name])
  whole = run_tiny(name, tokens, lengths, ngram_ids)
  rng = np.random.default_rng(seed)
  length = rng.integers(1, SEQ_LEN)
  prefix = tokens.copy()
  prefix[:, length:] = rng.integers(0, 260, prefix[:, length:].shape)
  cut = np.diff(np.minimum(np.cumsum(lengths, axis=1), length + 1), axis=1, prepend=0)
  padded = pad_lengths(cut, SEQ_LEN, lengths.shape[1])
  got = run_tiny(name, prefix, padded, ngram_ids)
  chex.assert_trees_all_close(got[:, :length], whole[:, :length], **SAME)


@each_variant
def test_a_byte_changes_what_follows_and_nothing_before(name):
  tokens, lengths, ngram_ids = (
    x if x is None else np.repeat(x[..., :1, :], SEQ_LEN, axis=-2)
    for x in random_batch(11, VARIANTS[name])
  )
  changed = tokens.copy()
  position = np.arange(SEQ_LEN)
  changed[position, position] = (changed[position, position] - 4 + 100) % 256 + 4
  before = run_tiny(name, tokens, lengths, ngram_ids)
  difference = abs(run_tiny(name, changed, lengths, ngram_ids) - before).max(axis=-1)
  assert (difference[position[:, None] > position] <= SAME["atol"]).all()
  assert (difference[position, position] > 1e-3).all()


@pytest.mark.parametrize("name", ["hf", "windows", "pooled", "tied"])
def test_gradients_reach_every_parameter(name):
  config = VARIANTS[name]
  batch = random_batch(5, config)

  @jax.jit
  def gradient(params):
    def loss(params):
      logits = BLT(config).apply({"params": params}, *batch)
      return losses.cross_entropy_nats(logits, batch[0]).mean()

    return jax.grad(loss)(params)

  gradients = gradient(tiny_params(name))
  chex.assert_tree_all_finite(gradients)
  for path, value in flax.traverse_util.flatten_dict(gradients, sep="/").items():
    # Where every layer starts from pooled bytes, only the last one counts.
    is_used = not (config.repool and path.startswith("encoder/cross_0"))
    assert (abs(value).max() > 0) == is_used, path


def test_documents_do_not_see_each_other():
  config, params = DEEP, tiny_params("meta")
  tokens = np.full((2, SEQ_LEN), 70, np.int32)
  tokens[:, 7] = tokenizer.EOS_ID
  tokens[1, 6] = 90
  lengths = np.array([[1, 3, 4, 5, 8]] * 2)  # the second document is patches 3 and 4

  def differences(config):
    got = intermediates(config, params, tokens, lengths)
    names = "encoder_hidden", "patches", "global_hidden"
    return [np.asarray(abs(got[n][0] - got[n][1]).max(axis=-1)) for n in names]

  for found, end in zip(differences(config), (8, 3, 3), strict=True):
    assert (found[end:] <= SAME["atol"]).all() and found[:end].max() > 1e-3
  masks = "document_masks", "latent_document_masks", "hash_document_masks"
  config = dataclasses.replace(config, **dict.fromkeys(masks, False))
  for found, end in zip(differences(config), (8, 3, 3), strict=True):
    assert found[end:].max() > 1e-3


@pytest.mark.parametrize("tied, window", [(False, 4), (True, None)])
def test_byte_lm_is_causal_and_stays_in_documents(tied, window):
  config = ByteLMConfig(stack(16, 2, window=window), vocab_size=50, tie_embeddings=tied)
  tokens = np.random.default_rng(0).integers(4, 50, (1, 12)).astype(np.int32)
  model = ByteLM(config)
  params = {"params": init(model, tokens)}
  assert ("output" in params["params"]) != tied
  changed = tokens.copy()
  changed[0, 6] = (changed[0, 6] - 3) % 46 + 4
  difference = abs(model.apply(params, tokens) - model.apply(params, changed))[0].max(axis=-1)
  assert (difference[:6] <= SAME["atol"]).all() and (difference[6:9] > 1e-4).all()
  tokens[0, 7] = changed[0, 7] = config.eos_id
  difference = abs(model.apply(params, tokens) - model.apply(params, changed))[0].max(axis=-1)
  assert (difference[8:] <= SAME["atol"]).all() and (difference[6:8] > 1e-4).all()


def with_stacks(config, **changes):
  stacks = {
    name: dataclasses.replace(getattr(config, name), **changes)
    for name in ("encoder", "latent", "decoder")
  }
  return dataclasses.replace(config, **stacks)


@pytest.mark.parametrize("remat, unroll", [("full", False), ("matmuls", True)])
def test_remat_and_unrolling_change_nothing(remat, unroll):
  tokens, lengths, _ = random_batch(2, DEEP)
  mask = np.ones(tokens.shape, np.float32)
  arguments = tiny_params("meta"), tokens, lengths, tokens, mask
  want = loss_and_gradient(DEEP, *arguments)
  changed = with_stacks(DEEP, remat=remat, unroll=unroll)
  chex.assert_trees_all_close(loss_and_gradient(changed, *arguments), want, **SAME)


def test_bfloat16_is_close_to_float32():
  batch = random_batch(3, DEEP)
  config = dataclasses.replace(DEEP, dtype="bfloat16")
  got = logits_of(config, tiny_params("meta"), *batch)
  assert got.dtype == jnp.float32
  want = run_tiny("meta", *batch)
  error = np.sqrt(np.mean((got - want) ** 2)) / np.std(want)
  assert error < BFLOAT16["rtol"]


def test_bfloat16_keeps_float32_parameters():
  config = dataclasses.replace(DEEP, dtype="bfloat16")
  shapes = jax.eval_shape(BLT(config).init, jax.random.key(0), *random_batch(0, DEEP))
  assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
  "changes, message",
  [
    (dict(mlp_multiplier=1e-9), "mlp_multiplier 1e-09 makes an MLP of no width"),
    (dict(num_heads=5), "dim 16 must be a multiple of num_heads 5"),
    (dict(num_heads=16), "head_dim 1 must be even"),
    (dict(num_kv_heads=3), "num_heads 4 must be a multiple of num_kv_heads 3"),
    (dict(window=0), "window is 0"),
    (dict(depth_init="depth"), "Unknown depth_init 'depth'; choose one of .*'dim_ratio'"),
    (dict(remat="names"), "Unknown remat 'names'; choose one of .*'matmuls'"),
  ],
)
def test_transformer_config_errors(changes, message):
  with pytest.raises(ValueError, match=message):
    stack(16, 1, **changes)


def test_cross_attention_config_error():
  with pytest.raises(ValueError, match="num_heads 4 must be a multiple of num_kv_heads 3"):
    CrossAttentionConfig(4, num_kv_heads=3)
  with pytest.raises(ValueError, match="window is 0; it must be >= 1"):
    CrossAttentionConfig(4, window=0)
  with pytest.raises(
    ValueError, match="decoder_cross.num_heads 17 must be at most the width 16"
  ):
    dataclasses.replace(DEEP, decoder_cross=CrossAttentionConfig(17))


@pytest.mark.parametrize(
  "changes, message",
  [
    (dict(decoder=stack(32, 1)), "widths 16 and 32 must be equal"),
    (dict(pooling="median"), "pooling 'median'"),
    (dict(pooling="avg_mean", encoder_cross=None), "pooling 'avg_mean'"),
    (dict(pooling="avg_max"), "one pooling, got 'avg_max'"),
    (dict(project_latent=False, latent=stack(24, 1)), "latent.dim 24 must be 2 . decoder"),
  ],
)
def test_blt_config_errors(changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(DEEP, **changes)


def test_cross_attention_heads_need_not_divide_the_width():
  cross = CrossAttentionConfig(3, all_layers=True)
  config = dataclasses.replace(DEEP, encoder_cross=cross, decoder_cross=cross)
  shapes = jax.eval_shape(BLT(config).init, jax.random.key(0), *random_batch(0, config))
  params = nn.meta.unbox(shapes)["params"]
  chex.assert_shape(params["encoder"]["cross_0"]["query"]["kernel"], (16, 15))
  chex.assert_shape(params["encoder"]["cross_0"]["output"]["kernel"], (15, 16))


def test_wrong_number_of_ngram_tables():
  tokens, lengths, ngram_ids = random_batch(0, VARIANTS["tied"])
  with pytest.raises(ValueError, match="2 frequency n-gram tables, ngram_ids has 0"):
    logits_of(VARIANTS["tied"], tiny_params("tied"), tokens, lengths)
  with pytest.raises(ValueError, match="0 frequency n-gram tables, ngram_ids has 2"):
    logits_of(DEEP, tiny_params("meta"), tokens, lengths, ngram_ids)


def test_lengths_that_do_not_fit():
  tokens, lengths, _ = random_batch(0, DEEP)
  with pytest.raises(ValueError, match=f"must sum to S . 1 = {SEQ_LEN + 1}"):
    BLT(DEEP).apply({"params": tiny_params("meta")}, tokens, lengths[:, :3])
  with pytest.raises(ValueError, match="rows of tokens and 1 of patch_lengths"):
    BLT(DEEP).apply({"params": tiny_params("meta")}, tokens, lengths[:1])
