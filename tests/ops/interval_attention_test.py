"""Interval attention and the gradient of norms, interpreted, against their XLA forms."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import SAME
from gpu_lowering import lowered

from blt_jax.ops import attention, norm
from blt_jax.ops.triton import interval_attention as kernels
from blt_jax.ops.triton import norm_gradient

BATCH = 2
WIDE, TALL = kernels.Tile(16, 32, 1, 1), kernels.Tile(32, 16, 1, 1)


def random_inputs(seq_len, heads, kv_heads, head_dim):
  keys = jax.random.split(jax.random.key(seq_len), 4)
  counts = (heads, kv_heads, kv_heads, heads)
  return [
    jax.random.normal(k, (BATCH, seq_len, n, head_dim))
    for k, n in zip(keys, counts, strict=True)
  ]


def documents(seq_len, mean_length):
  """Ids of documents of any length; None for a single one."""
  if mean_length is None:
    return None
  is_start = np.random.default_rng(0).random((BATCH, seq_len)) < 1 / mean_length
  return jnp.asarray(np.cumsum(is_start, axis=1), jnp.int32)


def with_gradients(function, query, key, value, gradient):
  output, backward = jax.vjp(function, query, key, value)
  return output, *backward(gradient)


@pytest.mark.parametrize("tiles", [kernels.Tiles(), kernels.Tiles(WIDE, TALL, WIDE)])
@pytest.mark.parametrize(
  "seq_len, heads, kv_heads, window, mean_length",
  [
    (160, 2, 2, 70, 40),  # a window larger than documents
    (150, 4, 2, 20, 90),  # smaller; a last block that is not full; heads that share
    (100, 2, 1, None, 30),
    (70, 1, 1, None, None),
  ],
)
def test_equals_the_xla_form(tiles, seq_len, heads, kv_heads, window, mean_length):
  inputs, ids = random_inputs(seq_len, heads, kv_heads, 32), documents(seq_len, mean_length)
  bounds = attention.intervals(ids, window, (BATCH, seq_len))

  def interval(*heads):
    return kernels.interval_attention(*heads, *bounds, tiles, "", True)

  def plain(*heads):
    return attention.attention(*heads, window=window, document_ids=ids)

  got, want = (with_gradients(f, *inputs) for f in (interval, plain))
  chex.assert_trees_all_close(got, want, **SAME)


def test_intervals():
  """Counted by hand: documents of 3, 1 and 2 positions, a window of 2."""
  ids = jnp.array([[0, 0, 0, 4, 5, 5]])
  first, last = attention.intervals(ids, 2, (1, 6))
  np.testing.assert_array_equal(first, [[0, 0, 1, 3, 4, 4]])
  np.testing.assert_array_equal(last, [[2, 3, 3, 4, 6, 6]])
  first, last = attention.intervals(None, None, (1, 6))
  np.testing.assert_array_equal(first, [[0] * 6])
  np.testing.assert_array_equal(last, [[6] * 6])


def test_the_door_opens_on_a_mesh_of_gpus(monkeypatch):
  inputs, ids = random_inputs(130, 2, 2, 64), documents(130, 40)

  def gradients(*heads):
    def loss(*heads):
      return attention.attention(*heads, window=64, document_ids=ids).sum()

    return jax.grad(loss, argnums=(0, 1, 2))(*heads)

  text = lowered(gradients, monkeypatch, *inputs[:3])
  for name in ("forward_kernel", "to_query_kernel", "to_key_kernel"):
    assert name in text


@pytest.mark.parametrize("shape, readers", [((3, 13, 192), 1), ((2, 5, 2, 256), 3)])
def test_gradient_of_norms(shape, readers):
  """Rows that fill no program, widths that are no power of two."""
  keys = jax.random.split(jax.random.key(0), readers + 3)
  x, *gradients = (jax.random.normal(k, shape) for k in keys[1:])
  scale = jax.random.normal(keys[0], shape[-1:])

  def fan_out(x, scale):
    return norm.fan_out(x, scale, 1e-5, readers)

  _, backward = jax.vjp(fan_out, x, scale)
  want = backward((gradients[0], tuple(gradients[1:])))
  got = norm_gradient.rms_norm_gradient(
    x, scale, gradients[0], gradients[1:], 1e-5, interpret=True
  )
  chex.assert_trees_all_close(got, want, **SAME)
