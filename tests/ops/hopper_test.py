"""The forward pass for Hopper GPUs is that of the model, its kernels what they stand for."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forward import stack
from uncached import random_params

from blt_jax.entropy import hopper_byte_lm, neural
from blt_jax.models import transformer
from blt_jax.models.byte_lm import ByteLM
from blt_jax.models.config import ByteLMConfig
from blt_jax.ops import attention, device, scoring
from blt_jax.ops.hopper import attention as hopper_attention
from blt_jax.ops.hopper import layer as hopper_layer


def needs_hopper(test):
  """Marks a test of kernels that Pallas cannot interpret on CPUs."""
  on_hopper = device.is_hopper(jax.devices()[0])
  return pytest.mark.gpu(pytest.mark.skipif(not on_hopper, reason="needs a Hopper GPU")(test))


_WINDOW = 128


def _config(dtype, num_kv_heads=4):
  sizes = {"num_heads": 8, "num_kv_heads": num_kv_heads, "head_dim": 64, "mlp_dim": 384}
  return ByteLMConfig(stack(512, 2, window=_WINDOW, **sizes), dtype=dtype)


_dot = functools.partial(jnp.dot, precision="highest", preferred_element_type=jnp.float32)
_einsum = functools.partial(jnp.einsum, precision="highest", preferred_element_type=jnp.float32)


def gated(x, scale, gate, up, layer):
  """What the kernel stands for, as are those below; in float32 but for inputs and outputs."""
  a, b = (_dot(x, m[layer[0]]) * scale[:, None] for m in (gate, up))
  return (jax.nn.silu(a) * b).astype(x.dtype)


def rotated(x, scale, even, odd, layer, angles, num_rotated):
  heads = even.shape[2] * 4 // angles.shape[1]
  a, b = (_dot(x, m[layer[0]]) * scale[:, None] for m in (even, odd))
  a, b = (m.reshape(len(x), heads, -1) for m in (a, b))
  parts = jnp.split(angles.astype(jnp.float32)[:, None], 4, axis=2)
  is_rotated = jnp.arange(heads)[:, None] < num_rotated
  cos = jnp.where(is_rotated, parts[0] + parts[1], 1)
  sin = jnp.where(is_rotated, parts[2] + parts[3], 0)
  return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=2).astype(x.dtype)


def added(residual, x, left, right, layer):
  total = residual + jnp.concatenate([_dot(x, m[layer[0]]) for m in (left, right)], axis=1)
  parts = jnp.square(total).reshape(len(x), -1, 256).sum(axis=2).T
  return total.astype(x.dtype), parts


def interval_attention(heads, past, layer, first, num_heads):
  shared = num_heads // past[0].shape[3]
  own = jnp.split(heads[:, :, num_heads:], 2, axis=2)
  key, value = (
    jnp.concatenate([p[layer[0]], o], axis=1).repeat(shared, axis=2)
    for p, o in zip(past, own, strict=True)
  )
  scores = _einsum("bqnh,bknh->bnqk", heads[:, :, :num_heads], key) * np.log(2)
  window, column = past[0].shape[2], jnp.arange(key.shape[1])[None, None]
  visible = column >= first[..., None] + window
  visible &= column <= window + jnp.arange(first.shape[1])[None, :, None]
  weights = jax.nn.softmax(jnp.where(visible[:, None], scores, -jnp.inf))
  mixed = _einsum("bnqk,bknh->bqnh", weights, value.astype(jnp.float32))
  return mixed.astype(heads.dtype)


def _rows(batch, length, seed):
  """Tokens, documents that begin anywhere, and positions: int32 [3, B, S]."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(4, 260, (batch, length))
  starts = rng.random((batch, length)) < 0.01
  first = np.maximum.accumulate(np.where(starts, np.arange(length), 0), axis=1)
  documents = 1000 * seed + np.cumsum(starts, axis=1)
  return np.stack([tokens, documents, np.arange(length) - first]).astype(np.int32)


def test_forward_is_that_of_the_model(monkeypatch):
  for function in (gated, rotated, added, interval_attention):
    monkeypatch.setattr(scoring, function.__name__, function)
  monkeypatch.setattr(
    scoring, "angle_parts", lambda c, s: jnp.concatenate([c, 0 * c, s, 0 * s], axis=1)
  )
  config = _config("float32")
  params = random_params(config)
  weights = hopper_byte_lm.make_weights(params, config)
  past = kept = transformer.empty_past(config.transformer, 2, config.dtype)
  with jax.default_matmul_precision("highest"):  # on GPUs, float32 products are TF32 without
    for seed in (1, 2, 3):
      tokens, documents, positions = _rows(2, 192, seed)
      want, past = ByteLM(config).apply(
        {"params": params}, tokens, documents, positions, past, method=ByteLM.resume
      )
      got, kept = hopper_byte_lm.resume(weights, config, tokens, documents, positions, kept)
      chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-4)
  chex.assert_trees_all_equal(kept.document_ids, past.document_ids)


def test_angles_are_exact_sums():
  angles = jax.random.uniform(jax.random.key(0), (64, 32)) * 6
  parts = hopper_layer.angle_parts(jnp.cos(angles), jnp.sin(angles)).astype(jnp.float32)
  cos, sin = parts[:, :32] + parts[:, 32:64], parts[:, 64:96] + parts[:, 96:]
  chex.assert_trees_all_close((cos, sin), (jnp.cos(angles), jnp.sin(angles)), atol=2e-5)


@pytest.mark.parametrize("num_kv_heads", [4, 8])
def test_kernels_build_for_hopper(num_kv_heads):
  config = _config("bfloat16", num_kv_heads)
  assert hopper_byte_lm.fits(config, 4, 192)

  def run(params, tokens, documents, positions, past):
    weights = hopper_byte_lm.make_weights(params, config)
    return hopper_byte_lm.resume(weights, config, tokens, documents, positions, past)

  past = transformer.empty_past(config.transformer, 4, config.dtype)
  traced = jax.jit(run).trace(random_params(config), *_rows(4, 192, 1), past)
  text = traced.lower(lowering_platforms=("cuda",)).as_text()
  assert text.count("stablehlo.custom_call @mosaic_gpu") == 5


def test_what_does_not_fit():
  config = _config("bfloat16")
  assert not hopper_byte_lm.fits(config, 3, 192)  # 576 rows are no multiple of 256
  assert not hopper_byte_lm.fits(config, 4, 64)  # shorter than the window
  assert not hopper_byte_lm.fits(config, 256, 129)
  assert not hopper_byte_lm.fits(_config("float32"), 4, 192)
  assert not hopper_byte_lm.fits(_config("bfloat16", num_kv_heads=2), 4, 192)


def _normal(seed, *shape, scale=1.0):
  x = jax.random.normal(jax.random.key(seed), shape) * scale
  return x.astype("bfloat16")


def _close(got, want):
  chex.assert_trees_all_close(
    jax.tree.map(lambda x: x.astype(jnp.float32), got),
    jax.tree.map(lambda x: x.astype(jnp.float32), want),
    rtol=3e-2,
    atol=3e-2,
  )


@needs_hopper
@pytest.mark.parametrize("rows", [256, 17 * 256, 100 * 256])
def test_products(rows):
  layer, scale = jnp.array([1]), jnp.linspace(0.5, 1, rows)
  x, residual, hidden = _normal(0, rows, 512), _normal(1, rows, 512), _normal(2, rows, 384)
  gate, up = (_normal(seed, 2, 512, 384, scale=0.05) for seed in (3, 4))
  even, odd = (_normal(seed, 2, 512, 512, scale=0.05) for seed in (5, 6))
  left, right = (_normal(seed, 2, 384, 256, scale=0.05) for seed in (7, 8))
  angles = jax.random.uniform(jax.random.key(9), (rows, 32)) * 6
  angles = hopper_layer.angle_parts(jnp.cos(angles), jnp.sin(angles))
  _close(
    jax.jit(hopper_layer.gated)(x, scale, gate, up, layer),
    gated(x, scale, gate, up, layer),
  )
  run = jax.jit(hopper_layer.rotated, static_argnums=6)
  _close(
    run(x, scale, even, odd, layer, angles, 12),
    rotated(x, scale, even, odd, layer, angles, 12),
  )
  got, parts = jax.jit(hopper_layer.added)(residual, hidden, left, right, layer)
  want, squares = added(residual, hidden, left, right, layer)
  _close(got, want)
  chex.assert_trees_all_close(parts.sum(axis=0), squares.sum(axis=0), rtol=1e-4)


@needs_hopper
@pytest.mark.parametrize("num_keys", [4, 8])
@pytest.mark.parametrize("batch, length", [(1, 128), (3, 320), (20, 1024)])
def test_attention(batch, length, num_keys):
  heads = _normal(0, batch, length, 8 + 2 * num_keys, 64, scale=0.5)
  past = tuple(_normal(seed, 2, batch, _WINDOW, num_keys, 64) for seed in (1, 2))
  layer = jnp.array([1])
  _, documents, _ = _rows(batch, length + _WINDOW, 1)
  first = attention.first_visible(jnp.asarray(documents), _WINDOW)[:, _WINDOW:] - _WINDOW
  got = jax.jit(hopper_attention.interval_attention, static_argnums=4)(
    heads, past, layer, first, 8
  )
  _close(got, interval_attention(heads, past, layer, first, 8))


@needs_hopper
def test_scores_do_not_depend_on_batch_mates():
  config = _config("bfloat16")
  params = random_params(config)
  rng = np.random.default_rng(0)
  documents = [rng.integers(4, 260, n).astype(np.int32) for n in (1, 63, 64, 65, 700, 3000)]
  scorer = neural.BatchScorer(config, params, num_lanes=4, chunk_length=192)
  for tokens, scores in zip(documents, scorer(documents), strict=True):
    np.testing.assert_array_equal(scorer([tokens])[0], scores)
    np.testing.assert_allclose(scores, exact_entropies(params, tokens), atol=0.05)


def exact_entropies(params, tokens):
  """In nats, of a document [n], by the model in float32."""
  with jax.default_matmul_precision("highest"):
    logits = ByteLM(_config("float32")).apply({"params": params}, tokens[None])[0]
  log_probs = jax.nn.log_softmax(logits)
  return -(jnp.exp(log_probs) * log_probs).sum(axis=1)


def test_exact_entropies_are_those_of_the_scorer():
  config = _config("float32")
  params, tokens = random_params(config), np.arange(4, 204, dtype=np.int32)
  want = neural.EntropyScorer(config, params, chunk_length=64)(tokens)
  np.testing.assert_allclose(exact_entropies(params, tokens), want, atol=1e-4)
