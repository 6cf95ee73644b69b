"""The train step compiles for a TPU topology, on a machine without one."""

import importlib.util
import os

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding

from blt_jax import config as settings
from blt_jax import sharding, steps, train_state

pytestmark = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install '.[tpu]'"
)


def test_sharded_blt_step_compiles_for_v4(monkeypatch):
  monkeypatch.setitem(os.environ, "TPU_SKIP_MDS_QUERY", "1")
  topology = topologies.get_topology_desc(
    "v4:2x2x1", platform="tpu", chip_config_name="megacore"
  )
  mesh = sharding.make_mesh(data=2, fsdp=2, devices=topology.devices)
  config = settings.get_config("blt")
  settings.set_blt_size(config.model, (128, 2), (256, 2, 2), 2, 2, 2)
  config.model.hash_vocab_size = 4096
  model = train_state.build_model(settings.make_model_config(config.model))
  optimizer, _ = settings.make_optimizer(config)
  state = train_state.abstract_state(model, optimizer, mesh)
  step = jax.jit(steps.make_train_step(model, optimizer), donate_argnames="state")
  with sharding.on_mesh(mesh):
    compiled = step.lower(state, _abstract_batch(4, 1024, 256, mesh)).compile()
  memory = compiled.memory_analysis()
  tables = model.config.hash_rows * model.config.encoder.dim
  others = sum(x.size for x in jax.tree.leaves(state.params)) - tables
  # Of the 12 bytes per parameter that AdamW keeps, each chip has a quarter of those of the
  # hash tables and half of the others.
  expected = 3 * tables + 6 * others
  assert expected < memory.argument_size_in_bytes < 1.1 * expected


def _abstract_batch(batch_size, seq_len, num_patches, mesh):
  rows = NamedSharding(mesh, sharding.BATCH)

  def array(width, dtype):
    return jax.ShapeDtypeStruct((batch_size, width), dtype, sharding=rows)

  return {
    "tokens": array(seq_len, jnp.int32),
    "targets": array(seq_len, jnp.int32),
    "loss_mask": array(seq_len, jnp.bool_),
    "patch_lengths": array(num_patches, jnp.int32),
  }
