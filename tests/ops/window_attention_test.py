"""Tests of ops/window_attention.py against attention with explicit masks."""

import functools

import chex
import dense
import jax
import jax.numpy as jnp
import pytest
from golden_cases import SAME

from blt_jax.ops import attention, row_attention
from blt_jax.ops import full_attention as whole_rows
from blt_jax.ops import window_attention as blocks
from blt_jax.ops.window_attention import window_attention


def _inputs(seq_len, num_keys, heads=4, groups=2):
  keys = jax.random.split(jax.random.key(seq_len), 3)
  shapes = [(2, seq_len, heads, 8), (2, num_keys, groups, 8), (2, num_keys, groups, 8)]
  return [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]


def _documents(length):
  return jnp.cumsum(jax.random.bernoulli(jax.random.key(1), 0.15, (2, length)), axis=1)


def _value_and_gradients(attend, inputs):
  return jax.value_and_grad(lambda x: jnp.sin(attend(*x)).sum())(inputs)


@pytest.mark.parametrize(
  ("seq_len", "window", "heads", "groups"),
  [(13, 4, 4, 2), (13, 5, 4, 4), (16, 8, 2, 1), (13, 12, 6, 3), (7, 1, 2, 2), (40, 9, 4, 2)],
)
def test_equals_attention_with_a_mask(seq_len, window, heads, groups):
  inputs, documents = _inputs(seq_len, seq_len, heads, groups), _documents(seq_len)
  first = jnp.maximum(attention.first_visible(documents, window), 0)
  got = _value_and_gradients(lambda *x: window_attention(*x, first, window), inputs)
  mask = dense.causal(seq_len, window, documents)
  chex.assert_trees_all_close(
    got, _value_and_gradients(lambda *x: dense.attend(*x, mask), inputs), **SAME
  )


@pytest.mark.parametrize("window", [4, 6])
def test_rows_go_on_after_keys_of_before(window):
  total, seq_len = 24, 10
  query, key, value = _inputs(total, total)
  documents = _documents(total)
  first = jnp.maximum(attention.first_visible(documents, window), 0)
  whole = window_attention(query, key, value, first, window)
  start = total - seq_len - window  # the keys that are kept
  part = window_attention(
    query[:, -seq_len:], key[:, start:], value[:, start:], first[:, -seq_len:] - start, window
  )
  chex.assert_trees_all_close(part, whole[:, -seq_len:], **SAME)


def test_later_keys_change_nothing():
  query, key, value = _inputs(20, 20)
  first = jnp.zeros((2, 20), jnp.int32).at[:].set(jnp.maximum(jnp.arange(20) - 5, 0))
  before = window_attention(query, key, value, first, 6)
  later = window_attention(query, key.at[:, 11:].set(9.0), value.at[:, 11:].set(9.0), first, 6)
  chex.assert_trees_all_equal(later[:, :11], before[:, :11])


def _by(attend, differentiate, inputs):
  output, logsumexps = attend(*inputs)
  return output, logsumexps, differentiate(*inputs, output, logsumexps, jnp.sin(output))


@pytest.mark.parametrize(("seq_len", "window"), [(13, 13), (45, 45), (45, 9), (150, 140)])
def test_cpus_and_other_devices_attend_alike(seq_len, window):
  query, key, value = _inputs(seq_len, seq_len)
  first = jnp.maximum(attention.first_visible(_documents(seq_len), window), 0)
  inputs = query, key, value, first
  in_turn = row_attention.attend_in_turn, row_attention.differentiate_in_turn
  in_blocks = blocks._attend_blocks, blocks._differentiate_blocks
  on_cpu, elsewhere = (
    _by(*(functools.partial(f, window=window) for f in form), inputs)
    for form in (in_turn, in_blocks)
  )
  chex.assert_trees_all_close(on_cpu, elsewhere, **SAME)
  if window == seq_len:
    at_once = _by(whole_rows._attend_at_once, whole_rows._differentiate_at_once, inputs)
    chex.assert_trees_all_close(on_cpu, at_once, **SAME)
