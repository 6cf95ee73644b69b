"""Tests of ops/tpu/attention.py: interpreted on the CPU, and compiled for a TPU."""

import collections
import functools
import importlib.util
import re

import chex
import dense
import flax.linen as nn
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from forward import stack
from golden_cases import BFLOAT16, SAME
from jax.sharding import AxisType, Mesh, NamedSharding

from blt_jax.cost import topologies
from blt_jax.models import transformer
from blt_jax.ops import attention
from blt_jax.ops.tpu import attention as tpu_attention
from blt_jax.parallel import sharding

# Documents end before, at and after edges of blocks of 128; two have one position.
ROWS = ((127, 1, 1, 70, 185), (128, 200, 56))


def documents(seq_len):
  rows = [np.repeat(np.arange(len(row)), row) for row in ROWS]
  return jnp.asarray(np.stack([row[:seq_len] for row in rows]), jnp.int32)


def random_inputs(seq_len, heads=2, kv_heads=2, head_dim=8):
  keys = jax.random.split(jax.random.key(seq_len), 3)
  shapes = [(2, seq_len, n, head_dim) for n in (heads, kv_heads, kv_heads)]
  return [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]


def loss_and_gradient(attend, inputs):
  def loss(inputs):
    output = attend(*inputs)
    return jnp.sum(jnp.sin(output.astype(jnp.float32))), output

  return jax.jit(jax.value_and_grad(loss, has_aux=True))(inputs)


def splash(inputs, window=None, ids=None, **options):
  attend = functools.partial(
    tpu_attention.splash_attention, window=window, document_ids=ids, max_block=128, **options
  )
  return loss_and_gradient(functools.partial(attend, interpret=True), inputs)


def with_mask(inputs, window=None, ids=None):
  visible = dense.causal(inputs[0].shape[1], window, ids)
  return loss_and_gradient(functools.partial(dense.attend, visible=visible), inputs)


@pytest.mark.parametrize("window", [1, 100, 128, 200, None])
@pytest.mark.parametrize("has_documents", [False, True])
def test_equals_attention_with_a_mask(window, has_documents):
  inputs = random_inputs(384)
  ids = documents(384) if has_documents else None
  got, want = splash(inputs, window, ids), with_mask(inputs, window, ids)
  chex.assert_trees_all_close(got, want, **SAME)


@pytest.mark.parametrize("seq_len", [1, 100, 130])
@pytest.mark.parametrize("window", [100, None])
def test_rows_need_not_fill_blocks(seq_len, window):
  inputs, ids = random_inputs(seq_len), documents(seq_len)
  got, want = splash(inputs, window, ids), with_mask(inputs, window, ids)
  chex.assert_tree_all_finite(got)
  chex.assert_trees_all_close(got, want, **SAME)


@pytest.mark.parametrize("window, seq_len", [(100, 256), (None, 256), (None, 1152)])
def test_heads_share_keys_in_adjacent_groups(window, seq_len):
  inputs = random_inputs(seq_len, heads=4)  # the long row has two backward kernels
  got, want = splash(inputs, window), with_mask(inputs, window)
  chex.assert_trees_all_close(got, want, **SAME)


@pytest.mark.parametrize("window", [100, None])
def test_wide_heads_lie_otherwise(window):
  inputs = random_inputs(256, head_dim=128)
  got, want = splash(inputs, window), with_mask(inputs, window)
  chex.assert_trees_all_close(got, want, **SAME)


@pytest.mark.parametrize("window", [100, None])
def test_bfloat16_is_close(window):
  inputs = random_inputs(256)
  narrow = [x.astype(jnp.bfloat16) for x in inputs]
  (_, got), gradients = splash(narrow, window)
  (_, want), wide_gradients = with_mask(inputs, window)
  assert got.dtype == jnp.bfloat16
  for a, b in zip([got, *gradients], [want, *wide_gradients], strict=True):
    chex.assert_trees_all_close(a.astype(jnp.float32), b, **BFLOAT16)


def test_large_scores_stay_finite():
  query, key, value = random_inputs(256)
  chex.assert_tree_all_finite(splash([1e4 * query, key, value], 100, documents(256)))


def test_the_door_opens_on_a_mesh_of_tpus(monkeypatch):
  inputs, ids = random_inputs(256), documents(256)
  want = attention.attention(*inputs, window=100, document_ids=ids)
  interpreted = functools.partial(tpu_attention.splash_attention, interpret=True)
  monkeypatch.setattr(tpu_attention, "splash_attention", interpreted)
  device = jax.sharding.AbstractDevice(device_kind="TPU v4", num_cores=1, platform="tpu")
  mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)

  def attend(*inputs):
    return attention.attention(*inputs, window=100, document_ids=ids)

  with jax.sharding.use_abstract_mesh(mesh):
    assert "splash_mha" in str(jax.make_jaxpr(attend)(*inputs))
  # There is no TPU to run on: the same door, opened by hand.
  monkeypatch.setattr(attention.device, "kernels", lambda: "tpu")
  chex.assert_trees_all_close(attend(*inputs), want, **SAME)


@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install '.[tpu]'"
)
@pytest.mark.parametrize(
  "window, remat, kernels",
  [
    (100, "attention", dict(fwd=1, dq=1, dkv=1)),  # its results are saved
    (None, "full", dict(fwd=2, dkv=1)),  # the backward pass computes them again
  ],
)
def test_kernels_of_a_sharded_stack_compiled_for_v4(window, remat, kernels):
  topology = topologies.get_topology("v4:2x2x1")
  devices = np.array(topology.devices).reshape(1, 1, 2, 2)
  mesh = Mesh(devices, sharding.AXES, axis_types=(AxisType.Auto,) * 4)
  config = stack(128, 2, num_heads=4, num_kv_heads=2, window=window, remat=remat)
  model = transformer.Transformer(config)
  rows = NamedSharding(mesh, sharding.BATCH)
  x = jax.ShapeDtypeStruct((4, 256, 128), jnp.bfloat16, sharding=rows)
  ids = jax.ShapeDtypeStruct((4, 256), jnp.int32, sharding=rows)
  params = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), x, ids))

  def loss(params, x, ids):
    return model.apply(params, x, ids).astype(jnp.float32).sum()

  with sharding.on_mesh(mesh):
    compiled = jax.jit(jax.grad(loss)).lower(params, x, ids).compile()
  calls = [line for line in compiled.as_text().splitlines() if "tpu_custom_call" in line]
  names = [re.search(r"splash_mha_(fwd|dq|dkv)", line)[1] for line in calls]
  assert collections.Counter(names) == kernels
