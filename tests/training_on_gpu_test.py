"""The training kernels on a GPU: `JAX_PLATFORMS=cuda python -m pytest -m gpu tests`.

In bfloat16 they have to be as close to float32 as XLA's own forms are.
"""

import dataclasses

import forward
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blt_jax import patching
from blt_jax.models.blt import BLT
from blt_jax.models.config import BLTConfig, CrossAttentionConfig
from blt_jax.ops import attention, device, hash_tables, norm, patch_attention
from blt_jax.parallel import sharding

_DEVICE = jax.devices()[0]
pytestmark = [
  pytest.mark.gpu,
  pytest.mark.skipif(
    device.kernels_of(_DEVICE) != "triton", reason="needs a GPU that has kernels"
  ),
]
_ROOM = 1.1  # of XLA's own error, or what rounding to bfloat16 once may take
_ROUNDING = 2**-9


def check(function, *inputs, room=_ROOM):
  """Compares outputs and gradients of bfloat16 inputs with those of float32."""

  def run(*inputs):
    output, backward = jax.vjp(function, *inputs)
    return output, backward(jax.tree.map(_like_noise, output))

  narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), inputs)

  def compiled():
    # A training step's options: without them, XLA tries many forms of each product.
    return jax.jit(lambda *x: run(*x), compiler_options=device.compiler_options(_DEVICE))

  with sharding.on_mesh(sharding.make_mesh(devices=[_DEVICE])):
    got = compiled()(*narrow)
    again = compiled()(*narrow)
  plain = compiled()(*narrow)
  with jax.default_matmul_precision("float32"):
    want = compiled()(*jax.tree.map(lambda x: x.astype(jnp.float32), narrow))
  for x, y, z, w in zip(*map(jax.tree.leaves, (got, again, plain, want)), strict=True):
    np.testing.assert_array_equal(np.asarray(x, np.float32), np.asarray(y, np.float32))
    assert _error(x, w) <= room * max(_error(z, w), _ROUNDING)


def _like_noise(x):
  return jax.random.normal(jax.random.key(x.size), x.shape).astype(x.dtype)


def _error(x, want):
  x, want = (np.asarray(a, np.float64) for a in (x, want))
  return np.linalg.norm(x - want) / max(np.linalg.norm(want), 1e-30)


def _noise(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def _documents(batch, seq_len, mean_length):
  is_start = np.random.default_rng(0).random((batch, seq_len)) < 1 / mean_length
  return jnp.asarray(np.cumsum(is_start, axis=1), jnp.int32)


@pytest.mark.parametrize(
  "seq_len, heads, kv_heads, head_dim, window, mean_length",
  [
    (2048, 4, 4, 64, 512, 300),
    (1001, 4, 1, 32, 128, 5000),
    (984, 4, 2, 128, None, 168),
    (1024, 2, 2, 128, None, 10**9),
    (300, 2, 2, 256, 64, 50),
  ],
)
def test_attention(seq_len, heads, kv_heads, head_dim, window, mean_length):
  ids = _documents(2, seq_len, mean_length)
  inputs = [
    _noise(i, 2, seq_len, n, head_dim) for i, n in enumerate((heads, kv_heads, kv_heads))
  ]
  check(lambda *x: attention.attention(*x, window=window, document_ids=ids), *inputs)


def _patch_ids(seq_len, num_patches):
  """Ids with patches of no byte, and one of a hundred."""
  ids = np.sort(np.random.default_rng(0).integers(0, num_patches - 20, (2, seq_len)))
  ids[:, -100:] = num_patches - 10
  return jnp.asarray(ids, jnp.int32)


@pytest.mark.parametrize("heads, kv_heads, head_dim", [(4, 4, 64), (4, 2, 32)])
def test_cross_attention(heads, kv_heads, head_dim):
  ids = _patch_ids(1000, 250)
  of_bytes, of_patches = (1000,), (250, 2)
  query, *both = (
    _noise(i, 2, *of_patches if i == 0 else of_bytes, n, head_dim)
    for i, n in enumerate((heads, kv_heads, kv_heads))
  )
  check(lambda *x: patch_attention.patches_attend(*x, ids), query, *both)
  query, *both = (
    _noise(i, 2, *of_bytes if i == 0 else of_patches, n, head_dim)
    for i, n in enumerate((heads, kv_heads, kv_heads))
  )
  check(lambda *x: patch_attention.bytes_attend(*x, ids), query, *both)


def test_pooling():
  ids = _patch_ids(1000, 250)
  check(lambda x: patch_attention.pool(x, ids, 250, "max"), _noise(0, 2, 1000, 256))


def test_norms():
  check(lambda *x: norm.fan_out(*x, 1e-5, 3), _noise(0, 4, 333, 1280), _noise(1, 1280))


def test_tables():
  rows = jax.random.randint(jax.random.key(0), (3, 2, 500), 0, 400)
  check(lambda x: hash_tables.lookup_sum(x, rows % 50, "bfloat16"), _noise(1, 400, 256))


@pytest.mark.parametrize("remat", ["none", "matmuls", "full"])
def test_gradients_of_a_model(remat):
  """All kernels at once: as close to float32 as XLA's forms, but for chance."""
  changes = dict(unroll=True, remat=remat, mlp_multiple_of=64)
  config = BLTConfig(
    encoder=forward.stack(128, 1, window=64, **changes),
    latent=forward.stack(256, 2, **changes),
    decoder=forward.stack(128, 2, window=64, **changes),
    encoder_cross=CrossAttentionConfig(4, all_layers=True),
    decoder_cross=CrossAttentionConfig(4, all_layers=True),
    hash_sizes=(3, 4),
    hash_vocab_size=500,
  )
  rng = np.random.default_rng(0)
  tokens = jnp.asarray(np.where(rng.random((2, 300)) < 0.01, 2, rng.integers(4, 260, (2, 300))))
  lengths = patching.patch_lengths(tokens, patching.PatchingConfig("static", patch_size=4))
  params = forward.init(BLT(config), tokens, lengths)

  def loss(params):
    dtype = jax.tree.leaves(params)[0].dtype.name
    model = BLT(dataclasses.replace(config, dtype=dtype))
    logits = model.apply({"params": params}, tokens, lengths)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)
    return -chosen.mean()

  check(loss, params, room=1.5)
