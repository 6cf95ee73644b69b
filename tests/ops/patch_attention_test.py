"""Tests of ops/patch_attention.py against attention with explicit masks."""

import functools

import chex
import dense
import flax.linen as nn
import golden_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import FLOAT32, SAME

from blt_jax import patching
from blt_jax.models import blt, layers
from blt_jax.models.config import CrossAttentionConfig
from blt_jax.ops import patch_attention

WINDOWS = [None, 1, 2, 3]
# Documents of the patches below; patches of a byte that is yet to come, or of none, have one.
DOCUMENTS = np.array([[0, 0, 1, 1, 1, 2], [0, 1, 1, 1, 1, 1], [0, 1, 2, 2, 3, 3]])
LENGTHS = np.array([[1, 4, 1, 3, 2, 3], [1, 6, 7, 0, 0, 0], [1, 1, 1, 1, 1, 9]])
DOCUMENTS = np.array([[0, 0, 1, 1, 1, 2], [0, 1, 1, 1, 1, 1], [0, 1, 2, 2, 3, 3]])  # of patches
SEQ_LEN, SLOTS = 13, 2


def cases(name):
  return [f for c, f in golden_cases.load("primitives") if c["name"] == name]


def normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def with_gradients(function, has_gradients=True):
  """Jits `function(*inputs)`, giving its output and the gradients of a loss on it."""

  def loss(inputs):
    output = function(*inputs)
    return jnp.sum(jnp.sin(output)), output

  def evaluate(*inputs):
    (_, output), gradients = jax.value_and_grad(loss, has_aux=True)(inputs)
    return output, gradients

  return jax.jit(evaluate if has_gradients else lambda *inputs: (function(*inputs), None))


def patches_attend_by_mask(query, key, value, visible):
  """`patches_attend` with a mask [B, P * K, S]."""
  flat = query.reshape(query.shape[0], -1, *query.shape[3:])
  return dense.attend(flat, key, value, visible).reshape(query.shape)


def bytes_attend_by_mask(query, key, value, visible):
  """`bytes_attend` with a mask [B, S, P * K]."""
  key, value = (x.reshape(x.shape[0], -1, *x.shape[3:]) for x in (key, value))
  return dense.attend(query, key, value, visible)


def encoder_mask(lengths, seq_len, window):
  queries = jnp.repeat(jnp.arange(lengths.shape[1]), SLOTS)[None]
  return dense.patch_window(queries, patching.patch_ids(lengths, seq_len), window)


def decoder_mask(lengths, seq_len, window):
  keys = jnp.repeat(jnp.arange(lengths.shape[1]), SLOTS)[None]
  return dense.patch_window(patching.decoder_patch_ids(lengths, seq_len), keys, window)


def check_patches_attend(
  lengths, seq_len, window, visible, heads=4, kv_heads=2, has_gradients=True, documents=None
):
  batch, num_patches = lengths.shape
  inputs = (
    normal(0, batch, num_patches, SLOTS, heads, 8),
    normal(1, batch, seq_len, kv_heads, 8),
    normal(2, batch, seq_len, kv_heads, 8),
  )
  ids = patching.patch_ids(jnp.asarray(lengths), seq_len)
  attend = functools.partial(
    patch_attention.patches_attend, patch_ids=ids, window=window, patch_documents=documents
  )
  by_mask = functools.partial(patches_attend_by_mask, visible=visible)
  got, want = (with_gradients(f, has_gradients)(*inputs) for f in (attend, by_mask))
  chex.assert_trees_all_close(got, want, **SAME)
  sees_nothing = ~np.asarray(visible).any(axis=-1).reshape(batch, num_patches, SLOTS)
  assert not np.asarray(got[0])[sees_nothing].any()


def check_bytes_attend(
  lengths, seq_len, window, visible, heads=4, kv_heads=2, has_gradients=True, documents=None
):
  batch, num_patches = lengths.shape
  inputs = (
    normal(0, batch, seq_len, heads, 8),
    normal(1, batch, num_patches, SLOTS, kv_heads, 8),
    normal(2, batch, num_patches, SLOTS, kv_heads, 8),
  )
  ids = patching.decoder_patch_ids(jnp.asarray(lengths), seq_len)
  attend = functools.partial(
    patch_attention.bytes_attend, patch_ids=ids, window=window, patch_documents=documents
  )
  by_mask = functools.partial(bytes_attend_by_mask, visible=visible)
  got, want = (with_gradients(f, has_gradients)(*inputs) for f in (attend, by_mask))
  chex.assert_trees_all_close(got, want, **SAME)


@pytest.mark.parametrize("window", WINDOWS)
def test_patches_attend_equals_a_mask(window):
  check_patches_attend(LENGTHS, SEQ_LEN, window, encoder_mask(LENGTHS, SEQ_LEN, window))


@pytest.mark.parametrize("window", WINDOWS)
def test_bytes_attend_equals_a_mask(window):
  check_bytes_attend(LENGTHS, SEQ_LEN, window, decoder_mask(LENGTHS, SEQ_LEN, window))


@pytest.mark.parametrize("window", [1, 3])
def test_windows_stay_inside_documents(window):
  documents = jnp.asarray(DOCUMENTS)
  of_vectors = jnp.repeat(documents, SLOTS, axis=1)

  def documents_of_bytes(find_ids):
    return jnp.take_along_axis(documents, jnp.asarray(find_ids(LENGTHS, SEQ_LEN)), axis=1)

  visible = encoder_mask(LENGTHS, SEQ_LEN, window)
  own = documents_of_bytes(patching.patch_ids)
  inside = visible & (of_vectors[:, :, None] == own[:, None])
  assert (window > 1) == bool((visible != inside).any())
  check_patches_attend(LENGTHS, SEQ_LEN, window, inside, documents=documents)

  visible = decoder_mask(LENGTHS, SEQ_LEN, window)
  own = documents_of_bytes(patching.decoder_patch_ids)
  inside = visible & (own[:, :, None] == of_vectors[:, None])
  assert (window > 1) == bool((visible != inside).any())
  check_bytes_attend(LENGTHS, SEQ_LEN, window, inside, documents=documents)


def test_gradients_of_bytes_that_no_patch_reads_are_finite():
  """Their scores are far above those of the patch that stands in for none."""
  query = jnp.array([[100.0, 1.0]])[:, :, None, None, None]
  key = jnp.array([[100.0, 1.0]])[:, :, None, None]
  ids, documents = jnp.array([[0, 1]]), jnp.array([[0, 1]])

  def loss(query, key):
    return patch_attention.patches_attend(query, key, key, ids, 2, documents).sum()

  assert loss(query, key) == 101  # each reads its own byte
  chex.assert_tree_all_finite(jax.grad(loss, argnums=(0, 1))(query, key))


@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (4, 1), (6, 3)])
def test_heads_share_keys_in_adjacent_groups(heads, kv_heads):
  for check, mask in (
    (check_patches_attend, encoder_mask),
    (check_bytes_attend, decoder_mask),
  ):
    check(LENGTHS, SEQ_LEN, 2, mask(LENGTHS, SEQ_LEN, 2), heads, kv_heads)


@pytest.mark.parametrize("window", [None, 2, 3])
@pytest.mark.parametrize("case, fields", golden_cases.load("mask_cases"))
def test_golden_masks(case, fields, window):
  assert case["k"] == SLOTS
  lengths, seq_len = fields["patch_lengths"], fields["tokens"].shape[1]
  visible = fields[f"cross_enc_w{window}"]
  mask = encoder_mask(lengths, seq_len, window)
  chex.assert_trees_all_equal(np.asarray(mask), visible)
  check_patches_attend(lengths, seq_len, window, visible, has_gradients=False)
  visible = fields[f"cross_dec_w{window}"]
  mask = decoder_mask(lengths, seq_len, window)
  chex.assert_trees_all_equal(np.asarray(mask), visible)
  check_bytes_attend(lengths, seq_len, window, visible, has_gradients=False)


@pytest.mark.parametrize("case, fields", golden_cases.load("mask_cases"))
def test_golden_documents_of_patches(case, fields):
  del case
  tokens, ids = jnp.asarray(fields["tokens"]), jnp.asarray(fields["patch_ids"])
  documents = blt.patch_document_ids(tokens, ids, fields["patch_lengths"].shape[1])
  ends = fields["global_tokens"] == 2
  chex.assert_trees_all_equal(np.asarray(documents), np.cumsum(ends, axis=1) - ends)


def test_ids_past_the_end_neither_count_nor_break_gradients():
  query, key = normal(0, 1, 3, 1, 2, 4), normal(1, 1, 6, 2, 4)
  ids = jnp.array([[0, 0, 1, 1, 5, 5]])  # patch 2 is empty, 5 does not exist

  def attend(query, key):
    return patch_attention.patches_attend(query, key, key, ids)

  want = patch_attention.patches_attend(query, key[:, :4], key[:, :4], ids[:, :4])
  chex.assert_trees_all_close(attend(query, key), want, **SAME)
  gradients = jax.grad(lambda q, k: attend(q, k).sum(), argnums=(0, 1))(query, key)
  chex.assert_tree_all_finite(gradients)


def test_large_scores_stay_finite():
  ids = patching.patch_ids(jnp.asarray(LENGTHS), SEQ_LEN)
  query = 1e4 * normal(0, 3, 6, SLOTS, 4, 8)
  key = value = normal(1, 3, SEQ_LEN, 4, 8)
  for window in (None, 3):
    attend = functools.partial(patch_attention.patches_attend, patch_ids=ids, window=window)
    chex.assert_tree_all_finite(with_gradients(attend)(query, key, value))


@pytest.mark.parametrize("modes", ["avg", "max", "min", "avg_max"])
@pytest.mark.parametrize("fields", cases("downsample"))
def test_golden_pooling(modes, fields):
  ids, num_patches = jnp.asarray(fields["patch_ids"]), fields["patch_lengths"].shape[1]
  pooled = patch_attention.pool(jnp.asarray(fields["h"]), ids, num_patches, modes)
  chex.assert_trees_all_close(pooled, fields[f"pool_{modes}"], **FLOAT32)


@pytest.mark.parametrize("modes", ["avg", "mean", "max", "min", "avg_min_max"])
def test_pooling_equals_a_loop_over_patches(modes):
  ids = patching.patch_ids(LENGTHS, SEQ_LEN)
  states = normal(0, 3, SEQ_LEN, 5)
  reductions = {"avg": np.mean, "mean": np.mean, "min": np.min, "max": np.max}
  want = np.zeros((3, 6, len(modes.split("_")), 5), np.float32)
  for row, patch in np.ndindex(3, 6):
    members = np.asarray(states[row])[ids[row] == patch]
    if len(members):
      want[row, patch] = [reductions[m](members, axis=0) for m in modes.split("_")]
  pool = functools.partial(
    patch_attention.pool, ids=jnp.asarray(ids), num_patches=6, modes=modes
  )
  got, gradients = with_gradients(pool)(states)
  chex.assert_trees_all_close(got, want.reshape(3, 6, -1), **SAME)
  chex.assert_tree_all_finite(gradients)


@pytest.mark.parametrize("modes", ["max", "min"])
def test_ties_share_the_gradient_evenly(modes):
  states = jnp.array([[[7.0], [2.0], [5.0], [5.0], [5.0], [1.0]]])
  if modes == "min":
    states = -states
  ids = jnp.array([[0, 1, 1, 1, 1, 1]])
  gradient = jax.grad(lambda x: patch_attention.pool(x, ids, 3, modes).sum())(states)
  want = np.float32([[[1], [0], [1 / 3], [1 / 3], [1 / 3], [0]]])
  chex.assert_trees_all_close(gradient, want, **SAME)


def test_pooling_keeps_the_dtype():
  states = normal(0, 1, 4, 3).astype(jnp.bfloat16)
  ids = jnp.array([[0, 1, 1, 1]])
  for modes in ("max", "avg"):
    pooled = patch_attention.pool(states, ids, 2, modes)
    assert pooled.dtype == jnp.bfloat16
    wide = patch_attention.pool(states.astype(jnp.float32), ids, 2, modes)
    chex.assert_trees_all_equal(pooled, wide.astype(jnp.bfloat16))


def test_expand_and_reduce_are_each_others_transpose():
  ids = jnp.array([[0, 1, 1, 3], [0, 0, 2, 2]])
  patches, states = normal(0, 2, 4, 3), normal(1, 2, 4, 3)
  expanded = patch_attention.expand(patches, ids)
  want = np.stack([np.asarray(patches)[row, ids[row]] for row in range(2)])
  chex.assert_trees_all_equal(np.asarray(expanded), want)
  summed = patch_attention.reduce_sum(states, ids, 4)
  chex.assert_trees_all_close(jnp.vdot(expanded, states), jnp.vdot(patches, summed), **SAME)
  gradient = jax.grad(lambda x: jnp.vdot(patch_attention.expand(x, ids), states))(patches)
  chex.assert_trees_all_close(gradient, summed, **SAME)
  gradient = jax.grad(lambda x: jnp.vdot(patch_attention.reduce_sum(x, ids, 4), patches))(
    states
  )
  chex.assert_trees_all_close(gradient, expanded, **SAME)


def test_expand_sums_gradients_of_narrow_values_in_float32():
  ids = jnp.zeros((1, 1000), jnp.int32)
  patches = jnp.ones((1, 1, 1), jnp.bfloat16)
  gradient = jax.grad(lambda x: patch_attention.expand(x, ids).sum())(patches)
  assert gradient.dtype == jnp.bfloat16
  assert float(gradient[0, 0, 0]) == 1000


def module_by_mask(params, x, context, visible, heads, epsilon=1e-5):
  """`models.layers.CrossAttention` on flat queries [B, Q, D] with a mask [B, Q, T]."""

  def norm(x, name):
    scale = params[name]["scale"][None, None]
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + epsilon) * scale

  def project(x, name):
    return (x @ params[name]["kernel"]).reshape(*x.shape[:2], heads, -1)

  context = norm(context, "context_norm")
  query = project(norm(x, "query_norm"), "query")
  key, value = project(context, "key"), project(context, "value")
  mixed = dense.attend(query, key, value, visible).reshape(x.shape)
  return x + mixed @ params["output"]["kernel"]


def golden_module():
  (fields,) = cases("cross_attention_module")
  names = {
      "query": "wq", "key": "wk", "value": "wv", "output": "wo",
      "query_norm": "cross_attn_norm_q", "context_norm": "cross_attn_norm_kv",
  }  # fmt: skip
  params = {}
  for ours, theirs in names.items():
    weight = jnp.asarray(fields[f"param_{theirs}.weight"])
    params[ours] = {"scale": weight} if ours.endswith("norm") else {"kernel": weight.T}
  return fields, params


def test_golden_cross_attention_module():
  fields, params = golden_module()
  got = module_by_mask(params, fields["x"], fields["kv"], fields["mask"], heads=4)
  chex.assert_trees_all_close(got, fields["out"], **FLOAT32)


@pytest.mark.parametrize("window", [None, 2])
def test_cross_attention_module_equals_a_mask(window):
  fields, params = golden_module()
  config = CrossAttentionConfig(num_heads=4, window=window)
  lengths = jnp.array([[1, 3, 6], [1, 5, 4]])
  patches, states = fields["x"].reshape(2, 3, SLOTS, 16), fields["kv"]

  def apply(bytes_are_queries, *inputs):
    module = layers.CrossAttention(config, 1e-5, bytes_are_queries)
    return module.apply({"params": params}, *inputs)

  ids = patching.patch_ids(lengths, 9)
  got = apply(False, patches, states, ids).reshape(2, 6, 16)
  visible = encoder_mask(lengths, 9, window)
  want = module_by_mask(params, fields["x"], states, visible, heads=4)
  chex.assert_trees_all_close(got, want, **FLOAT32)

  got = apply(True, states, patches, patching.decoder_patch_ids(lengths, 9))
  visible = decoder_mask(lengths, 9, window)
  want = module_by_mask(params, states, fields["x"], visible, heads=4)
  chex.assert_trees_all_close(got, want, **FLOAT32)


def test_new_cross_attention_module_has_unit_norms():
  module = layers.CrossAttention(CrossAttentionConfig(4, num_kv_heads=2), 1e-5, True)
  inputs = jnp.ones((1, 3, 16)), jnp.ones((1, 2, SLOTS, 16)), jnp.zeros((1, 3), jnp.int32)
  params = nn.meta.unbox(module.init(jax.random.key(0), *inputs))["params"]
  chex.assert_shape(params["key"]["kernel"], (16, 8))
  chex.assert_trees_all_equal(params["query_norm"]["scale"], jnp.ones(16))
