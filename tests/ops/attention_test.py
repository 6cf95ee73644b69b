"""Tests of ops/attention.py against attention with explicit masks."""

import functools

import chex
import dense
import golden_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import BFLOAT16, SAME

from blt_jax.models import transformer
from blt_jax.ops import attention

SEQ_LEN = 13


def random_inputs(seq_len=SEQ_LEN, heads=4, kv_heads=2, batch=2):
  keys = jax.random.split(jax.random.key(seq_len), 3)
  shapes = [(batch, seq_len, n, 8) for n in (heads, kv_heads, kv_heads)]
  return [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]


@jax.jit
def attend_with_mask(inputs, visible):
  def loss(inputs):
    output = dense.attend(*inputs, visible)
    return jnp.sum(jnp.sin(output)), output

  return jax.value_and_grad(loss, has_aux=True)(inputs)


@functools.partial(jax.jit, static_argnums=1)
def attend(inputs, window, document_ids=None):
  def loss(inputs):
    output = attention.attention(*inputs, window=window, document_ids=document_ids)
    return jnp.sum(jnp.sin(output)), output

  return jax.value_and_grad(loss, has_aux=True)(inputs)


@pytest.mark.parametrize("window", [1, 2, 4, 5, 12, SEQ_LEN, 20, None])
@pytest.mark.parametrize("has_documents", [False, True])
def test_equals_attention_with_a_mask(window, has_documents):
  inputs = random_inputs()
  documents = None
  if has_documents:
    documents = jnp.array([[0] * 4 + [1] * 8 + [2], [0, 1, 1, 2] + [3] * 9])
  got = attend(inputs, window, documents)
  want = attend_with_mask(inputs, dense.causal(SEQ_LEN, window, documents))
  chex.assert_trees_all_close(got, want, **SAME)


@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (4, 1), (6, 3)])
@pytest.mark.parametrize("window", [3, None])
def test_heads_share_keys_in_adjacent_groups(heads, kv_heads, window):
  inputs = random_inputs(9, heads, kv_heads)
  got, want = attend(inputs, window), attend_with_mask(inputs, dense.causal(9, window))
  chex.assert_trees_all_close(got, want, **SAME)


@pytest.mark.parametrize("case, fields", golden_cases.load("mask_cases"))
def test_golden_masks(case, fields):
  tokens = jnp.asarray(fields["tokens"])
  inputs = random_inputs(tokens.shape[1], batch=tokens.shape[0])
  documents = transformer.document_ids(tokens, eos_id=2)
  for window, mask in (
    (case["sliding_window"], "local_block_causal"),
    (None, "block_causal"),
  ):
    visible = dense.causal(tokens.shape[1], window, documents)
    chex.assert_trees_all_equal(np.asarray(visible), fields[mask])
    got, want = attend(inputs, window, documents), attend_with_mask(inputs, fields[mask])
    chex.assert_trees_all_close(got, want, **SAME)


def test_window_one_sees_itself_only():
  query, key, value = random_inputs(5, 2, 2)
  got = attention.attention(query, key, value, window=1)
  chex.assert_trees_all_close(got, value, **SAME)


def test_one_position():
  query, key, value = random_inputs(1, 2, 2)
  for window in (1, 3, None):
    chex.assert_trees_all_close(
      attention.attention(query, key, value, window=window), value, **SAME
    )


@pytest.mark.parametrize("window", [3, None])
def test_bfloat16_is_close(window):
  inputs = random_inputs()
  narrow = [x.astype(jnp.bfloat16) for x in inputs]
  got = attention.attention(*narrow, window=window)
  assert got.dtype == jnp.bfloat16
  want = attention.attention(*inputs, window=window)
  chex.assert_trees_all_close(got.astype(jnp.float32), want, **BFLOAT16)


@pytest.mark.parametrize("window", [4, None])
def test_large_scores_stay_finite(window):
  query, key, value = random_inputs()
  _, gradients = attend([1e4 * query, key, value], window)
  chex.assert_tree_all_finite(gradients)


@pytest.mark.parametrize("window", [64, 128, None])
def test_scores_are_not_kept(window):
  inputs, ids = random_inputs(512, batch=8), jnp.zeros((8, 512), jnp.int32)

  def attend(*inputs):
    return attention.attention(*inputs, window=window, document_ids=ids)

  _, backward = jax.eval_shape(lambda *x: jax.vjp(attend, *x), *inputs)
  kept, given = (sum(x.size for x in jax.tree.leaves(t)) for t in (backward, inputs))
  assert kept <= 2 * given
