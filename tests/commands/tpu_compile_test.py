"""The train step compiles for TPU slices, on a machine without one, and is counted right."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from blt_jax import config as settings
from blt_jax import train_compile
from blt_jax.cost import flops, hlo, kernels, topologies, work
from blt_jax.ops.tpu import attention as tpu_attention
from blt_jax.parallel import sharding

pytestmark = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install '.[tpu]'"
)


def _config(**mesh):
  config = settings.get_config("blt")
  settings.set_blt_size(config.model, (128, 1), (256, 2, 2), 2, 1, 2)
  config.model.encoder.window = config.model.decoder.window = 128
  config.model.update(hash_sizes=(3,), hash_vocab_size=512)
  for stack in (config.model.encoder, config.model.latent, config.model.decoder):
    stack.remat = "full"
  config.data.update(batch_size=8, seq_len=256, num_patches=64)
  config.mesh.update(mesh)
  return config


@pytest.mark.parametrize(("name", "num_slices"), [("v4-8", 2), ("v6e-4", 1)])
def test_blt_step_compiles_and_is_reported(name, num_slices):
  config = _config(slices=num_slices, fsdp=2)
  topology = topologies.get_topology(name, num_slices)
  result = train_compile.compile_step(config, topology)
  parameters, memory = result.step.num_parameters, result.memory
  # AdamW keeps twice the parameters, and half of all, or a quarter, lies on each chip.
  assert parameters <= memory.parameters <= 2 * parameters
  assert memory.optimizer == pytest.approx(2 * memory.parameters, rel=0.01)
  assert memory.parameters + memory.optimizer < memory.peak < memory.limit
  # Attention looks at whole blocks of positions, far more than such short rows have.
  assert 1 < result.flops.overhead < 2
  assert 1.2 < result.flops.remat_factor < 1.4
  kinds = {(e.kind, e.axes) for e in result.work.exchanges}
  assert ("all-gather", "fsdp") in kinds
  assert any(e.between_slices for e in result.work.exchanges) == (num_slices > 1)
  json.dumps(result.to_dict())


def _baseline_config(kind):
  config = settings.get_config(kind)
  stacks = {name: part for name, part in config.model.items() if hasattr(part, "num_layers")}
  for stack in stacks.values():
    stack.update(dim=128, num_heads=1, num_layers=2, remat="full")
  if kind == "megabyte":
    config.model.global_model.update(dim=256, num_heads=2)
  elif kind == "spacebyte":
    config.model.local_model.window = 128
    config.model.global_model.update(dim=256, num_heads=2)
    config.model.num_patches = 64
  else:
    config.model.transformer.window = None
  config.data.update(batch_size=8, seq_len=256)
  config.mesh.fsdp = 2
  return config


@pytest.mark.parametrize("kind", ["megabyte", "spacebyte", "byte_lm"])
def test_baseline_steps_compile(kind):
  result = train_compile.compile_step(_baseline_config(kind), topologies.get_topology("v4-8"))
  assert result.memory.peak < result.memory.limit
  assert 1 < result.flops.overhead < 3
  assert 0.5 < result.flops.paper / result.flops.model < 2  # each by its own patches


def _mesh(name="v4-8", **axes):
  topology = topologies.get_topology(name)
  return sharding.make_mesh(**axes, devices=topology.devices), topology.chip


def _measure(function, mesh, chip, *arguments):
  traced = jax.jit(function).trace(
    *(
      jax.ShapeDtypeStruct(
        size, jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec(*spec))
      )
      for size, spec in arguments
    )
  )
  module = hlo.parse(traced.lower().compile().as_text())
  return work.measure(module, kernels.kernel_flops(traced), mesh, chip)


def test_a_scan_of_sharded_products():
  mesh, chip = _mesh(fsdp=4)

  def layers(x, matrices):
    return jax.lax.scan(lambda x, matrix: (jnp.sin(x @ matrix), None), x, matrices)[0]

  rows, weights = ((4096, 512), ("fsdp",)), ((5, 512, 512), (None, "fsdp"))
  done = _measure(layers, mesh, chip, rows, weights)
  assert done.product_flops == 5 * 2 * (4096 // 4) * 512 * 512
  (gather,) = done.exchanges
  assert (gather.kind, gather.axes) == ("all-gather", "fsdp")
  assert gather.payload_bytes == 5 * 512 * 512 * 2


def test_a_batch_of_products_is_no_convolution_with_zeros():
  mesh, chip = _mesh(data=4)
  batches = ((32, 128, 256), ("data",)), ((32, 256, 128), ("data",))
  done = _measure(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), mesh, chip, *batches)
  assert done.product_flops == 8 * 2 * 128 * 256 * 128
  assert done.exchanges == ()


@pytest.mark.parametrize(("window", "blocks"), [(None, 10), (512, 7)])
def test_attention_kernels_count_the_blocks_that_they_visit(window, blocks):
  """Rows of 4 blocks of 512, of which a causal mask leaves 10 of 16, a window fewer."""
  mesh, chip = _mesh(data=4)

  def attend(x):
    def shard(x):
      return tpu_attention.splash_attention(x, x, x, window=window)

    spec = PartitionSpec("data")
    return jax.shard_map(shard, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)(x)

  done = _measure(attend, mesh, chip, ((4, 2048, 2, 128), ("data",)))
  assert done.kernel_flops == 2 * blocks * 2 * 2 * 512 * 512 * 128
  assert done.unknown == ()
  pairs = flops.visible_pairs(2048, window)
  assert 1 < done.kernel_flops / (2 * 4 * pairs * 128) < 2.5


def test_a_shape_that_libtpu_refuses():
  with pytest.raises(ValueError, match="libtpu refuses topology 'v4:9x9x9'.*v4-N with N cores"):
    topologies.get_topology("v4:9x9x9")
