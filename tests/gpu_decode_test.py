"""The GPU kernels, interpreted, against the functions that they stand for."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import SAME

from blt_jax.decode import layers
from blt_jax.decode.layers import rotate
from blt_jax.ops import gpu_decode, norm
from blt_jax.ops.ring_attention import ring_attention


@pytest.mark.parametrize("is_gated", [False, True])
@pytest.mark.parametrize("has_norm", [False, True])
def test_matvec(is_gated, has_norm):
  keys = jax.random.split(jax.random.key(0), 4)
  x, matrix = jax.random.normal(keys[0], (3, 768)), jax.random.normal(keys[1], (32, 768))
  scale = jax.random.normal(keys[2], (768,)) if has_norm else None
  size = 16 if is_gated else 32
  residual = jax.random.normal(keys[3], (3, size))
  want = norm.rms_norm(x, scale, 1e-5) if has_norm else x / 30
  want = want @ matrix.T
  if is_gated:
    want = jax.nn.silu(want[:, :size]) * want[:, size:]
  x = x if has_norm else x / 30
  got = gpu_decode.matvec(
    x, matrix, scale=scale, epsilon=1e-5, is_gated=is_gated, residual=residual, factor=2.0,
    interpret=True,
  )  # fmt: skip
  assert gpu_decode.fits_matvec(x, size)
  chex.assert_trees_all_close(got, want + 2 * residual, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("window, size", [(70, 128), (None, 192)])
@pytest.mark.parametrize("length, key_heads", [(1, 4), (3, 2)])
def test_attend(window, size, length, key_heads):
  """Rows that have read nothing, little, and more than the ring holds; one that rests."""
  position = np.array([0, 3, 65, 185 if window is None else 1000], np.int32)
  count = np.array([length, length, 0, 1], np.int32)
  first = np.repeat((position - position // 2)[:, None], length, axis=1)
  keys = jax.random.split(jax.random.key(1), 4)
  heads = jax.random.normal(keys[0], (4, length, 4 + 2 * key_heads, 32))
  rings = [jax.random.normal(k, (4, size, key_heads, 32)) for k in keys[1:3]]
  angles = position[:, None, None, None] + jax.random.normal(keys[3], (4, length, 1, 16))
  angles = jnp.cos(angles), jnp.sin(angles)
  assert gpu_decode.fits_attend(heads, 4, rings[0], window)
  got = gpu_decode.attend(
    heads, angles, *rings, position, count, first, num_heads=4, window=window, interpret=True
  )
  rotated = rotate(heads[:, :, : 4 + key_heads], angles)
  want = ring_attention(
    rotated[:, :, :4], rotated[:, :, 4:], heads[:, :, 4 + key_heads :], *rings,
    position, count, first, window,
  )  # fmt: skip
  for row, real in enumerate(count):
    chex.assert_trees_all_close(got[0][row, :real], want[0][row, :real], **SAME)
  chex.assert_trees_all_close(got[1:], want[1:], **SAME)


@pytest.mark.parametrize("window", [1, 3])
def test_attend_patches(window):
  keys = jax.random.split(jax.random.key(2), 2)
  query = jax.random.normal(keys[0], (2, 3, 1, 2, 2, 32))
  patches = jax.random.normal(keys[1], (2, 5, 2, 2, 2, 32))
  ids = jnp.array([[0, 1, 2], [3, 4, 4]])
  assert gpu_decode.fits_attend_patches(patches)
  got = gpu_decode.attend_patches(query, patches, ids, window=window, interpret=True)
  want = layers._attend_patches(query, patches, ids, window)
  chex.assert_trees_all_close(got, want, **SAME)
