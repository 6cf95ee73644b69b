"""The GPU kernels, interpreted, against the functions that they stand for."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import SAME

from blt_jax.ops import attention, decode_layers, norm
from blt_jax.ops.ring_attention import ring_attention
from blt_jax.ops.rope import rotate_halves
from blt_jax.ops.triton import attention as gpu_attention
from blt_jax.ops.triton import call as gpu_call
from blt_jax.ops.triton import matvec as gpu_matvec
from blt_jax.ops.triton import norm as gpu_norm
from blt_jax.ops.triton import patch_attention as gpu_patch_attention
from blt_jax.ops.triton import patch_encoder as gpu_patch_encoder
from blt_jax.ops.triton import ring_attention as gpu_ring_attention


@pytest.mark.parametrize("is_gated", [False, True])
@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize(
  "number, width, big", [(3, 768, 1), (1, 768, 10**9), (1, 2048, 1), (1, 5632, 1)]
)
def test_matvec(is_gated, has_norm, number, width, big, monkeypatch):
  monkeypatch.setattr(gpu_matvec, "_BIG", big)
  keys = jax.random.split(jax.random.key(0), 4)
  x = jax.random.normal(keys[0], (number, width))
  matrix = jax.random.normal(keys[1], (32, width))
  scale = jax.random.normal(keys[2], (width,)) if has_norm else None
  size = 16 if is_gated else 32
  residual = jax.random.normal(keys[3], (number, size))
  x = x if has_norm else x / 30
  want = norm.rms_norm(x, scale, 1e-5) if has_norm else x
  want = want @ matrix.T
  if is_gated:
    want = jax.nn.silu(want[:, :size]) * want[:, size:]
  got = gpu_matvec.matvec(
    x, matrix, scale=scale, epsilon=1e-5, is_gated=is_gated, residual=residual, factor=2.0,
    interpret=True,
  )  # fmt: skip
  assert gpu_matvec.fits_matvec(x, size)
  chex.assert_trees_all_close(got, want + 2 * residual, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("width", [768, 1024, 5632])
def test_norm(width):
  keys = jax.random.split(jax.random.key(0), 2)
  x, scale = jax.random.normal(keys[0], (9, width)), jax.random.normal(keys[1], (width,))
  got = gpu_norm.rms_norm(x.astype("bfloat16"), scale, 1e-5, interpret=True)
  assert gpu_norm.fits_norm(x) and got.dtype == "bfloat16"
  want = norm.rms_norm(x.astype("bfloat16"), scale, 1e-5)
  chex.assert_trees_all_close(got, want, rtol=1e-2)


@pytest.mark.parametrize("window, size", [(70, 128), (300, 512), (None, 256)])
@pytest.mark.parametrize("length, key_heads, head_dim", [(1, 4, 32), (2, 2, 32), (1, 4, 128)])
@pytest.mark.parametrize("out", [8, 256])
def test_attend_add(window, size, length, key_heads, head_dim, out, monkeypatch):
  """Rows that have read nothing, little, and more than the ring holds; one that rests."""
  monkeypatch.setattr(gpu_ring_attention, "_PART", 64)
  monkeypatch.setattr(gpu_ring_attention, "_PROGRAMS", 32 if out == 8 else 1)  # parts, or not
  position = np.array([0, 3, 65, 185 if window is None else 1000], np.int32)
  count = np.array([length, length, 0, 1], np.int32)
  first = np.repeat((position - position // 2)[:, None], length, axis=1)
  keys = jax.random.split(jax.random.key(1), 6)
  heads = jax.random.normal(keys[0], (4, length, 4 + 2 * key_heads, head_dim))
  rings = [jax.random.normal(k, (4, size, key_heads, head_dim)) for k in keys[1:3]]
  angles = position[:, None, None, None] + jax.random.normal(
    keys[3], (4, length, 1, head_dim // 2)
  )
  angles = jnp.cos(angles), jnp.sin(angles)
  matrix = jax.random.normal(keys[4], (out, 4 * head_dim)) / 8
  residual = jax.random.normal(keys[5], (4, length, out))
  assert gpu_ring_attention.fits_attend(heads, 4, rings[0], window)
  got = gpu_ring_attention.attend_add(
    heads, angles, *rings, position, count, first, matrix, residual, window=window,
    interpret=True,
  )  # fmt: skip
  rotated = rotate_halves(heads[:, :, : 4 + key_heads], angles)
  mixed, *want = ring_attention(
    rotated[:, :, :4], rotated[:, :, 4:], heads[:, :, 4 + key_heads :], *rings,
    position, count, first, window,
  )  # fmt: skip
  mixed = residual + mixed.reshape(4, length, -1) @ matrix.T
  for row, real in enumerate(count):
    chex.assert_trees_all_close(got[0][row, :real], mixed[row, :real], rtol=1e-4, atol=1e-4)
  chex.assert_trees_all_close(list(got[1:]), want, **SAME)


@pytest.mark.parametrize("first", [None, [[0, 1, 1], [2, 2, 4]]])
@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("heads, head_dim", [(2, 32), (12, 64)])
def test_read_patches(window, heads, head_dim, first):
  keys = jax.random.split(jax.random.key(2), 4)
  query = jax.random.normal(keys[0], (2, 3, 1, heads, 1, head_dim))
  patches = jax.random.normal(keys[1], (2, 5, 3, 2, heads, head_dim))
  ids = jnp.array([[0, 1, 2], [3, 4, 4]])
  first = None if first is None else jnp.array(first)
  matrix = jax.random.normal(keys[2], (12, heads * head_dim)) / 8
  residual = jax.random.normal(keys[3], (2, 3, 12))
  assert gpu_patch_attention.fits_read(query, 12)
  got = gpu_patch_attention.read_patches(
    query, patches, ids, matrix, residual, first, window=window, factor=2.0, interpret=True
  )
  mixed = decode_layers.attend_patches(query, patches, ids, window, first).reshape(2, 3, -1)
  chex.assert_trees_all_close(got, 2 * residual + mixed @ matrix.T, rtol=1e-4, atol=1e-4)


_STARTS = jnp.array([[0, 3, 20], [5, 5, 30]])
_ENDS = jnp.array([[3, 20, 40], [5, 6, 37]])  # some patches of no byte, of one, of many


@pytest.mark.parametrize("modes", ["max", "min_avg", "mean_max"])
def test_pool(modes):
  states = jax.random.normal(jax.random.key(4), (2, 40, 512))
  assert gpu_patch_encoder.fits_pool(states)
  got = gpu_patch_encoder.pool(states, _STARTS, _ENDS, modes, interpret=True)
  want = decode_layers.pool_bytes(states, _STARTS, _ENDS, modes)
  chex.assert_trees_all_close(got, want, **SAME)


@pytest.mark.parametrize("slots, heads, repeats", [(2, 3, 1), (1, 2, 4)])
def test_patches_attend(slots, heads, repeats):
  keys = jax.random.split(jax.random.key(5), 2)
  query = jax.random.normal(keys[0], (2, 3, slots, heads, repeats, 32))
  read = jax.random.normal(keys[1], (2, 40, 2, heads, 32))
  assert gpu_patch_encoder.fits_attend(query, read)
  got = gpu_patch_encoder.attend(query, read, _STARTS, _ENDS, interpret=True)
  want = decode_layers.attend_bytes(query, read, _STARTS, _ENDS)
  chex.assert_trees_all_close(got, want, **SAME)


@pytest.mark.parametrize("window", [64, 128])
def test_interval_attention(window):
  """Rows of one document and of several; one before which nothing was."""
  keys = jax.random.split(jax.random.key(3), 5)
  query = jax.random.normal(keys[0], (2, 192, 4, 16))
  row = [jax.random.normal(k, (2, 192, 2, 16)) for k in keys[1:3]]
  past = [jax.random.normal(k, (2, window, 2, 16)) for k in keys[3:]]
  before = jnp.array([[5] * window, [attention.NOTHING] * window])
  documents = jnp.array([[5] * 192, [5] * 20 + [6] + [7] * 100 + [8] * 71])
  want = attention.attention(
    query, *row, window=window, document_ids=documents, past=attention.Past(*past, before)
  )
  seen = attention.first_visible(jnp.concatenate([before, documents], axis=1), window)
  got = gpu_attention.interval_attention(
    query, row, past, seen[:, window:] - window, interpret=True
  )
  chex.assert_trees_all_close(got, want, **SAME)


def test_overlap_retains_what_the_first_chain_makes(monkeypatch):
  """Until the small array is copied, and what the second chain makes last is there."""
  retained, x = [], jnp.arange(4.0)

  def after(small, others):
    retained.extend(others)
    return small

  monkeypatch.setattr(gpu_call, "_after", after)

  def first():
    doubled = gpu_call.retain(2 * x)
    sine = jnp.sin(doubled)
    return gpu_call.retain(sine + 1).sum(), {"sine": sine}

  (small, rest), (last, others) = gpu_call.overlap(first, lambda: (x + 5, "others"))
  sine = jnp.sin(2 * x)
  chex.assert_trees_all_close((small, rest), ((sine + 1).sum(), {"sine": sine}))
  chex.assert_trees_all_close(retained, [2 * x, sine + 1, x + 5])
  assert others == "others" and last is retained[-1]
