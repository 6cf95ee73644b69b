"""The mesh, the rules, and what they refuse."""

import importlib.util
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from blt_jax import config as settings
from blt_jax import kinds
from blt_jax.cost import topologies
from blt_jax.parallel import sharding
from blt_jax.training import state as train_state

needs_devices = pytest.mark.skipif(
  jax.device_count() < 8, reason="needs the fake devices of conftest.py"
)
needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install '.[tpu]'"
)
ROWS = ("data", "fsdp", "tensor")


def abstract_mesh(*shape):
  return AbstractMesh(shape, sharding.AXES, axis_types=(AxisType.Auto,) * 4)


def tpu_devices(name, slices=1):
  return topologies.get_topology(name, slices).devices


# --- Meshes


@needs_devices
def test_data_takes_the_rest():
  assert sharding.make_mesh().devices.shape == (1, 8, 1, 1)
  assert sharding.make_mesh(fsdp=2, slices=2).devices.shape == (2, 2, 2, 1)
  some = jax.devices()[:4]
  mesh = sharding.make_mesh(tensor=2, devices=some)
  assert mesh.devices.shape == (1, 2, 1, 2) and set(mesh.devices.flat) == set(some)
  assert mesh.axis_names == sharding.AXES


@needs_devices
@pytest.mark.parametrize(
  "sizes, product",
  [
    (dict(data=16), "1 x 16 x 1 x 1"),  # more than there are
    (dict(data=2, fsdp=2), "1 x 2 x 2 x 1"),  # some left
    (dict(fsdp=3), "1 x 2 x 3 x 1"),
    (dict(tensor=16), "1 x 1 x 1 x 16"),
    (dict(fsdp=0), "1 x 8 x 0 x 1"),
    (dict(data=-2, fsdp=-4), "1 x -2 x -4 x 1"),
  ],
)
def test_sizes_must_multiply_to_the_devices(sizes, product):
  with pytest.raises(ValueError, match=f"config.mesh asks for {product} .*there are 8"):
    sharding.make_mesh(**sizes)


@pytest.mark.parametrize("present, asked", [(1, 2), (2, 1), (4, 2)])
def test_slices_must_be_those_of_the_pod(present, asked):
  devices = [types.SimpleNamespace(platform="tpu", slice_index=i % present) for i in range(8)]
  with pytest.raises(ValueError, match=f"slices is {asked} .* form {present} pod slices"):
    sharding.make_mesh(slices=asked, devices=devices)


@needs_libtpu
def test_slices_lie_along_their_axis():
  devices = tpu_devices("v4:2x2x1", slices=2)
  mesh = sharding.make_mesh(fsdp=4, slices=2, devices=devices)
  slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
  np.testing.assert_array_equal(slices.reshape(2, 4), [[0] * 4, [1] * 4])


@needs_libtpu
def test_axes_must_fit_the_torus():
  devices = tpu_devices("v4:4x4x4")
  assert sharding.make_mesh(data=4, fsdp=16, devices=devices).shape["fsdp"] == 16
  with pytest.raises(ValueError, match="data=8, fsdp=8, tensor=1 does not fit the torus"):
    sharding.make_mesh(data=8, fsdp=8, devices=devices)


def test_batches_divide_over_devices_and_parts():
  mesh = abstract_mesh(2, 2, 4, 2)
  sharding.check_batch_size(32, 2, mesh)
  with pytest.raises(ValueError, match="batch_size 16 must be a multiple of 32: 16 devices"):
    sharding.check_batch_size(16, 2, mesh)


# --- Parameters


def place(shape, names, mesh=(1, 4, 16, 2)):
  leaf = nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)
  boxed = {"encoder": {"kernel": leaf}, "step": jax.ShapeDtypeStruct((), jnp.int32)}
  placed = sharding.state_shardings(boxed, abstract_mesh(*mesh))
  assert placed["step"].spec == PartitionSpec()
  return placed["encoder"]["kernel"].spec


@pytest.mark.parametrize(
  "names, spec",
  [
    (("embed", "heads"), (("fsdp",), ("tensor",))),
    (("contracted", None), (("tensor", "fsdp"), None)),
    (("hash_rows", None), (ROWS, None)),
    (("vocab", "embed"), (None, ("fsdp",))),
  ],
)
def test_rules(names, spec):
  assert place((1024, 512), names) == PartitionSpec(*spec)


@pytest.mark.parametrize(
  "shape, names, message",
  [
    ((64, 64), ("embed", "head"), r"encoder/kernel \(64, 64\): no rule .* for \['head'\]"),
    ((40, 64), ("embed", "heads"), r"40 \(embed\) must be a multiple of 16, .*config.mesh"),
    ((192, 8), ("hash_rows", None), "multiple of 128, .*hash_rows_multiple_of"),
    ((64, 64), ("embed", "embed"), "two dimensions on one mesh axis"),
    ((8192, 4096), (None, "mlp"), 'too large to be whole on all 16 devices along "fsdp"'),
  ],
)
def test_misplaced_parameters_are_errors(shape, names, message):
  with pytest.raises(ValueError, match=message):
    place(shape, names)


def test_large_parameters_may_be_whole_where_nothing_is_sharded():
  assert place((8192, 4096), (None, "mlp"), mesh=(1, 8, 1, 1)) == PartitionSpec(
    None, ("tensor",)
  )


SIZES = {
  "1b": ((1024, 16), (2048, 16, 25), 9, 16, 2),
  "8b": ((1280, 20), (4096, 32, 32), 6, 20, 4),
}


@pytest.mark.parametrize(
  "size, mesh",
  [
    ("1b", (1, 4, 16, 1)),
    ("8b", (1, 4, 32, 1)),
    ("8b", (2, 4, 16, 4)),
    ("1b", (1, 16, 64, 1)),
  ],
)
def test_models_spread_over_pods(size, mesh):
  """Parameters and both moments: hash tables over all chips, the rest over "fsdp"."""
  config = settings.get_config("blt")
  settings.set_blt_size(config.model, *SIZES[size])
  model = kinds.build_model(settings.make_model_config(config.model))
  optimizer, _ = settings.make_optimizer(config)
  state = train_state.abstract_state(model, optimizer, abstract_mesh(*mesh))
  per_device = total = tables = 0
  for x in jax.tree.leaves(state):
    here = np.prod(x.sharding.shard_shape(x.shape), dtype=int)
    per_device, total = per_device + here, total + x.size
    tables += x.size * (x.shape == (model.config.hash_rows, config.model.encoder.dim))
  assert tables == 3 * model.config.hash_rows * config.model.encoder.dim
  chips, shards = int(np.prod(mesh[1:])), mesh[2] * mesh[3]
  expected = tables / chips + (total - tables) / shards
  assert expected <= per_device < 1.02 * expected
