"""The GPU kernels between bytes and patches, interpreted, against the forms of XLA."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import SAME
from gpu_lowering import lowered

from blt_jax.ops import patch_attention
from blt_jax.ops.triton import (
  bytes_attend,
  patch_intervals,
  patch_pool,
  patch_sum,
  patches_attend,
)

# Patch of each byte. Patches of no byte, one, a block, more than a block; no first patch;
# bytes past the last of 6 patches; a row of one patch.
IDS = np.array(
  [
    [0] + [1] * 8 + [3] * 19 + [5] * 9,
    [1] * 3 + [2] * 16 + [4] * 5 + [5] * 2 + [7] * 11,
    [3] * 37,
  ],
  np.int32,
)
BATCH, SEQ_LEN, PATCHES = *IDS.shape, 6
# K vectors, G key heads, R query heads of each, H.
SIZES = [(2, 4, 1, 16), (1, 3, 3, 32), (5, 2, 1, 16), (2, 2, 2, 20)]


def normal(seed, *shape, dtype="float32"):
  return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def with_gradients(function, weights, inputs):
  """The output of a function, and the gradients of `weights` times it, in float32."""

  @jax.jit
  def run(weights, *inputs):
    output, backward = jax.vjp(function, *inputs)
    return output, *backward(weights.astype(output.dtype))

  return [np.asarray(x, np.float32) for x in run(weights, *inputs)]


def same(got, want, inputs):
  """Float32 to rounding; bfloat16 within its resolution of the largest value."""
  for ours, theirs in zip(got, want, strict=True):
    if inputs[0].dtype == jnp.float32:
      np.testing.assert_allclose(ours, theirs, **SAME)
    else:
      assert np.abs(ours - theirs).max() <= 2**-7 * np.abs(theirs).max()


def patch_inputs(slots, heads, repeats, head_dim, dtype="float32"):
  """Queries of patches, keys and values of bytes, and weights of what comes out."""
  shape = BATCH, PATCHES, slots, heads * repeats, head_dim
  read = BATCH, SEQ_LEN, heads, head_dim
  return (normal(0, *shape, dtype=dtype), normal(1, *read, dtype=dtype),
          normal(2, *read, dtype=dtype)), normal(3, *shape)  # fmt: skip


def byte_inputs(slots, heads, repeats, head_dim, dtype="float32"):
  """Queries of bytes, keys and values of patches, and weights of what comes out."""
  shape = BATCH, SEQ_LEN, heads * repeats, head_dim
  read = BATCH, PATCHES, slots, heads, head_dim
  return (normal(0, *shape, dtype=dtype), normal(1, *read, dtype=dtype),
          normal(2, *read, dtype=dtype)), normal(3, *shape)  # fmt: skip


CASES = {
  "patches": (patches_attend, patch_attention.patches_attend, patch_inputs, IDS),
  "bytes": (bytes_attend, patch_attention.bytes_attend, byte_inputs, IDS.clip(0, 5)),
}


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", CASES)
def test_attention(name, sizes, monkeypatch):
  monkeypatch.setattr(patch_intervals, "_WIDTH", 32)  # several programs share the heads
  kernel, by_xla, draw, ids = CASES[name]
  inputs, weights = draw(*sizes)
  assert kernel.fits(*inputs[:2])
  got = with_gradients(lambda *x: kernel.attend(*x, ids, True), weights, inputs)
  want = with_gradients(lambda *x: by_xla(*x, ids), weights, inputs)
  same(got, want, inputs)


@pytest.mark.parametrize("name", CASES)
def test_attention_in_bfloat16(name):
  """Compared with float32, kernels lose no more than the forms of XLA."""
  kernel, by_xla, draw, ids = CASES[name]
  narrow, weights = draw(2, 4, 1, 16, "bfloat16")
  weights = weights.astype(jnp.bfloat16)
  wide = [x.astype(jnp.float32) for x in narrow]
  exact = with_gradients(lambda *x: by_xla(*x, ids), weights, wide)
  got = with_gradients(lambda *x: kernel.attend(*x, ids, True), weights, narrow)
  theirs = with_gradients(lambda *x: by_xla(*x, ids), weights, narrow)
  for want, ours, xla in zip(exact, got, theirs, strict=True):
    errors = [np.linalg.norm(x - want) / np.linalg.norm(want) for x in (ours, xla)]
    assert errors[0] < 1.1 * errors[1] < 0.02


@pytest.mark.parametrize("name", CASES)
def test_large_scores_stay_finite(name):
  kernel, _, draw, ids = CASES[name]
  inputs, weights = draw(2, 2, 1, 16)
  inputs = 1e4 * inputs[0], *inputs[1:]
  chex.assert_tree_all_finite(
    with_gradients(lambda *x: kernel.attend(*x, ids, True), weights, inputs)
  )


PARTS = {
  "avg": (patch_pool.MEAN,),
  "min": (patch_pool.LEAST,),
  "max": (patch_pool.LARGEST,),
  "avg_max": (patch_pool.MEAN, patch_pool.LARGEST),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("modes", PARTS)
def test_pool(modes, dtype):
  """States of few values, so that many bytes of a patch attain its extremes."""
  states = jnp.round(normal(0, BATCH, SEQ_LEN, 96, dtype=dtype))
  weights = normal(1, BATCH, PATCHES, 96 * len(PARTS[modes]))
  assert patch_pool.fits(states)
  got = with_gradients(
    lambda x: patch_pool.pool(x, IDS, PATCHES, PARTS[modes], True), weights, [states]
  )
  want = with_gradients(
    lambda x: patch_attention.pool(x, IDS, PATCHES, modes), weights, [states]
  )
  same(got, want, [states])


def test_sum_drops_bytes_of_no_patch():
  values = normal(0, BATCH, SEQ_LEN, 96)
  got = patch_sum.reduce_sum(values, IDS - 1, 3, interpret=True)
  want = np.zeros((BATCH, 3, 96))
  for row, byte in np.ndindex(BATCH, SEQ_LEN):
    if 0 <= IDS[row, byte] - 1 < 3:
      want[row, IDS[row, byte] - 1] += values[row, byte]
  np.testing.assert_allclose(got, want, **SAME)


def test_sum_of_narrow_values_is_taken_in_float32():
  values = jnp.ones((1, 1000, 32), jnp.bfloat16)
  got = patch_sum.reduce_sum(values, jnp.zeros((1, 1000), jnp.int32), 1, interpret=True)
  assert got.dtype == jnp.bfloat16
  np.testing.assert_array_equal(np.float32(got), 1000)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", CASES)
def test_doors_lead_to_kernels_that_lower(name, dtype, monkeypatch):
  _, by_door, draw, ids = CASES[name]
  inputs, weights = draw(2, 4, 2, 64, dtype)

  def loss(*inputs):
    return jnp.sum(by_door(*inputs, ids).astype(jnp.float32) * weights)

  text = lowered(jax.grad(loss, argnums=(0, 1, 2)), monkeypatch, *inputs)
  assert f"{name}_attend" in text and f"{name}_attend_backward" in text


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_pool_and_expand_lead_to_kernels_that_lower(dtype, monkeypatch):
  def loss(states, patches):
    pooled = patch_attention.pool(states, IDS, PATCHES, "avg_min_max")
    given = patch_attention.expand(patches, IDS)
    return jnp.sum(pooled.astype(jnp.float32)) + jnp.sum(given.astype(jnp.float32))

  inputs = (
    normal(0, BATCH, SEQ_LEN, 96, dtype=dtype),
    normal(1, BATCH, PATCHES, 96, dtype=dtype),
  )
  text = lowered(jax.grad(loss, argnums=(0, 1)), monkeypatch, *inputs)
  for name in ("patch_pool", "patch_pool_backward", "patch_sum"):
    assert f'"{name}"' in text
