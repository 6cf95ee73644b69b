"""Sums of table rows on one device and on meshes: values, gradients, what is sent."""

import dataclasses
import functools
import importlib.util
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from forward import init, stack
from golden_cases import SAME
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from table_lookups import LOOKUPS, ROWS, patterns

from blt_jax.cost import topologies
from blt_jax.models import local, partitioning
from blt_jax.models.config import BLTConfig
from blt_jax.ops import hash_tables
from blt_jax.parallel import sharding

DIM = 4
MESHES = {
    "data": dict(data=8),
    "fsdp": dict(fsdp=8),
    "tensor": dict(tensor=8),
    "all of a slice": dict(data=2, fsdp=2, tensor=2),
    "slices": dict(slices=2, data=2, fsdp=2),
    "slices and tensor": dict(slices=2, fsdp=2, tensor=2),
    "slices alone": dict(slices=8),
}  # fmt: skip
needs_devices = pytest.mark.skipif(
  jax.device_count() < 8, reason="needs the fake devices of conftest.py"
)


def look_up(table, rows, dtype="float32"):
  """As the model does, on the mesh if there is one."""
  function = functools.partial(
    hash_tables.lookup_sum, dtype=dtype, axes=partitioning.axes_of("hash_rows")
  )
  inputs = [("hash_rows", None), (None, "batch", "bytes")]
  return partitioning.per_shard(function, inputs, ("batch", "bytes", None))(table, rows)


def weighted(function):
  """Values and the table's gradient for given gradients of the bytes."""

  def run(table, rows, weights):
    values, backward = jax.vjp(lambda table: function(table, rows), table)
    return values, backward(weights)[0]

  return run


@functools.cache
def on_mesh(name, dtype="float32"):
  mesh = sharding.make_mesh(**MESHES[name])
  return sharding.jit(weighted(functools.partial(look_up, dtype=dtype)), mesh)


def plain(table, rows, weights):
  """Values and the table's gradient in numpy."""
  gradient = np.zeros(table.shape, np.float32)
  np.add.at(gradient, rows, np.broadcast_to(weights, (*rows.shape, DIM)))
  return table[rows].astype(np.float32).sum(axis=0), gradient


def draw(rng):
  table = rng.normal(size=(ROWS, DIM)).astype(np.float32)
  return table, rng.normal(size=(*LOOKUPS[1:], DIM)).astype(np.float32)


def check(function, table, rows, weights):
  got = function(table, np.int32(rows), weights)
  for ours, want in zip(got, plain(table, rows, weights), strict=True):
    np.testing.assert_allclose(np.asarray(ours), want, **SAME)


def test_by_hand():
  table = jnp.array([[1.0, 10], [2, 20], [3, 30]])
  rows = jnp.array([[[0, 2, 2]], [[2, 2, 1]]])
  values, gradient = weighted(look_up)(table, rows, jnp.array([[[1.0, 0], [10, 1], [100, 2]]]))
  np.testing.assert_array_equal(values, [[[4, 40], [6, 60], [5, 50]]])
  np.testing.assert_array_equal(gradient, [[1, 0], [100, 2], [121, 4]])


@pytest.mark.parametrize("pattern", patterns(np.random.default_rng(0)))
def test_one_device(pattern):
  rng = np.random.default_rng(1)
  table, weights = draw(rng)
  check(jax.jit(weighted(look_up)), table, patterns(rng)[pattern], weights)


@pytest.mark.parametrize("mesh", [None, "fsdp"])
def test_bfloat16_tables_add_repeats_in_float32(mesh):
  """Added one by one in bfloat16, 256 + 1 stays 256."""
  if mesh and jax.device_count() < 8:
    pytest.skip("needs the fake devices of conftest.py")
  run = (
    on_mesh(mesh, "bfloat16")
    if mesh
    else weighted(functools.partial(look_up, dtype="bfloat16"))
  )
  table = jnp.ones((ROWS, DIM), jnp.bfloat16)
  values, gradient = run(
    table, np.full(LOOKUPS, 5, np.int32), np.ones((8, 16, DIM), np.float32)
  )
  assert values.dtype == jnp.float32 and gradient.dtype == jnp.bfloat16
  np.testing.assert_array_equal(values, np.full(values.shape, 3))
  want = np.zeros((ROWS, DIM))
  want[5] = 384
  np.testing.assert_array_equal(gradient.astype(np.float32), want)


@needs_devices
@pytest.mark.parametrize("mesh", MESHES)
def test_meshes_and_skew_change_nothing(mesh):
  rng = np.random.default_rng(2)
  for rows in patterns(rng).values():
    table, weights = draw(rng)
    check(on_mesh(mesh), table, rows, weights)


@needs_devices
@settings(max_examples=40)
@given(data=st.data(), mesh=st.sampled_from(["all of a slice", "slices"]))
def test_any_lookups_are_exact(data, mesh):
  """Every device draws its rows from a range of its own."""
  rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
  low = np.array(data.draw(st.lists(st.integers(0, ROWS - 1), min_size=8, max_size=8)))
  width = data.draw(st.integers(1, ROWS))
  rows = np.minimum(low[:, None] + rng.integers(0, width, LOOKUPS), ROWS - 1)
  table, weights = draw(rng)
  check(on_mesh(mesh), table, rows, weights)


@needs_devices
def test_gradient_lies_where_the_table_does():
  rng = np.random.default_rng(3)
  table, weights = draw(rng)
  _, gradient = on_mesh("all of a slice")(table, np.int32(patterns(rng)["random"]), weights)
  assert {s.data.shape for s in gradient.addressable_shards} == {(ROWS // 8, DIM)}


@needs_devices
@pytest.mark.parametrize("mesh, seq_len", [("slices and tensor", 11), ("all of a slice", 16)])
def test_embeddings_of_a_model_do_not_depend_on_the_mesh(mesh, seq_len):
  config = dataclasses.replace(
    BLTConfig(stack(16, 1), stack(32, 1), stack(16, 1), None, None),
    hash_vocab_size=50,
    hash_rows_multiple_of=8,
  )
  tokens = np.random.default_rng(4).integers(4, 260, (8, seq_len)).astype(np.int32)
  params = init(local.Embedder(config), tokens)
  assert params["hashes"]["embedding"].shape == (304, 16)

  def embed(params, tokens):
    return local.Embedder(config).apply({"params": params}, tokens)

  want = jax.jit(embed)(params, tokens)
  got = sharding.jit(embed, sharding.make_mesh(**MESHES[mesh]))(params, tokens)
  np.testing.assert_allclose(np.asarray(got), np.asarray(want), **SAME)


_SENT = re.compile(
  r" = (.*?) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(-start)?\("
)


def sent_elements(hlo):
  """The elements of the largest array in each collective of a compiled program, by kind."""
  largest = {}
  for arrays, kind, _ in _SENT.findall(hlo):
    shapes = re.findall(r"\w+\[([\d,]*)\]", arrays)
    sizes = [math.prod(int(n) for n in shape.split(",") if n) for shape in shapes]
    largest[kind] = max(largest.get(kind, 0), *sizes)
  return largest


@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install '.[tpu]'"
)
def test_tpu_never_sends_a_table():
  topology = topologies.get_topology("v4:2x2x1")
  mesh = sharding.make_mesh(data=2, fsdp=2, devices=topology.devices)
  optimizer = optax.adamw(1e-3)

  def step(table, state, rows, weights):
    def loss(table):
      return (jnp.square(look_up(table, rows, "bfloat16")) * weights).sum()

    updates, state = optimizer.update(jax.grad(loss)(table), state, table)
    return optax.apply_updates(table, updates), state

  def array(shape, dtype, *names):
    with sharding.on_mesh(mesh):
      placed = NamedSharding(mesh, partitioning.mesh_axes(names))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=placed)

  table = array((65_536, 128), jnp.float32, "hash_rows", None)
  state = jax.tree.map(
    lambda x: table if x.ndim else array((), x.dtype), jax.eval_shape(optimizer.init, table)
  )
  rows = array((6, 4, 256), jnp.int32, None, "batch", "bytes")
  weights = array((4, 256, 128), jnp.float32, "batch", "bytes", None)
  with sharding.on_mesh(mesh):
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(table, state, rows, weights).compile()
  sent = sent_elements(compiled.as_text())
  # Four thirds of a device's 6 * 256 lookups travel; its part of the table is 8 times as large.
  assert sent["all-to-all"] == 2048 * 128
  assert max(sent.values()) < 65_536 * 128 // 4
  assert compiled.output_shardings[0].is_equivalent_to(table.sharding, 2)
