"""The train step compiles for a TPU topology, on a machine without one."""

import importlib.util
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding

from blt_jax import config as settings
from blt_jax import sharding, steps, train_state

pytestmark = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install '.[tpu]'"
)


def test_sharded_blt_step_compiles_for_v4(monkeypatch):
  monkeypatch.setitem(os.environ, "TPU_SKIP_MDS_QUERY", "1")
  monkeypatch.setitem(os.environ, "ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  topology = topologies.get_topology_desc(
    "v4:2x2x1", platform="tpu", chip_config_name="megacore"
  )
  devices = np.array(topology.devices).reshape(1, 2, 2, 1)
  mesh = Mesh(devices, sharding.AXES, axis_types=(AxisType.Auto,) * 4)
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
  parameters = sum(x.size for x in jax.tree.leaves(state.params))
  # Half of what AdamW keeps, 12 bytes per parameter, lies on each of the two shards.
  assert 6 * parameters < memory.argument_size_in_bytes < 8 * parameters


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
