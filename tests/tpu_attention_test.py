"""Tests of ops/tpu_attention.py, interpreted on the CPU, against attention with a mask."""

import functools

import chex
import dense
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import FLOAT32

from blt_jax.ops import tpu_attention

# Ends and begins at, before and after edges of blocks; a document of one position.
LENGTHS = ((127, 1, 1, 70, 185), (128, 200, 56))


def inputs(seq_len, heads=2, kv_heads=2, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(seq_len), 3)
  shapes = [(2, seq_len, n, 8) for n in (heads, kv_heads, kv_heads)]
  return [jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes, strict=True)]


def documents(seq_len):
  rows = [np.repeat(np.arange(len(row)), row) for row in LENGTHS]
  return jnp.asarray(np.stack([row[:seq_len] for row in rows]), jnp.int32)


def loss_and_gradient(attend):
  def loss(inputs):
    output = attend(*inputs)
    return jnp.sum(jnp.sin(output.astype(jnp.float32))), output

  return jax.jit(jax.value_and_grad(loss, has_aux=True))


def splash(window, ids, max_block=128):
  return loss_and_gradient(
    functools.partial(
      tpu_attention.splash_attention,
      window=window, document_ids=ids, interpret=True, max_block=max_block,
    )
  )  # fmt: skip


@pytest.mark.parametrize("has_documents", [False, True])
@pytest.mark.parametrize("window", [1, 100, 128, 200, None])
def test_equals_attention_with_a_mask(window, has_documents):
  seq_len = 384
  ids = documents(seq_len) if has_documents else None
  arrays = inputs(seq_len)
  want = loss_and_gradient(
    functools.partial(dense.attend, visible=dense.causal(seq_len, window, ids))
  )(arrays)
  chex.assert_trees_all_close(splash(window, ids)(arrays), want, **FLOAT32)
