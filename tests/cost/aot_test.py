"""What is read out of compiled programs: loops, FLOPs, collectives, memory traffic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from blt_jax.cost import (
  chips,
  collectives,
  executions,
  hlo,
  products,
  topologies,
  traffic,
  work,
)

CHIP = chips.Chip("made up", 1e12, 1e9, 1e9, link_bandwidth=1.0, links=4, network_bandwidth=0.5)


def _compiled(function, *shapes):
  arguments = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
  return hlo.parse(jax.jit(function).lower(*arguments).compile().as_text())


def _flops(module):
  return sum(e.count * products.product_flops(module, e) for e in executions.walk(module))


def test_a_scanned_product_counts_as_often_as_it_runs():
  def layers(x, matrices):
    return jax.lax.scan(lambda x, matrix: (jnp.sin(x @ matrix), None), x, matrices)[0]

  assert _flops(_compiled(layers, (8, 32), (5, 32, 32))) == 5 * 2 * 8 * 32 * 32


def test_loops_in_loops_multiply():
  def function(x, matrix):
    def inner(_, x):
      return jnp.sin(x @ matrix)

    def outer(x, _):
      return jax.lax.fori_loop(2, 6, inner, x), None

    return jax.lax.scan(outer, x, None, length=3)[0]

  assert _flops(_compiled(function, (8, 16), (16, 16))) == 3 * 4 * 2 * 8 * 16 * 16


def test_a_loop_of_unknown_length_counts_once_and_is_named():
  def function(x, matrix):
    return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ matrix, x)

  module = _compiled(function, (8, 16), (16, 16))
  assert _flops(module) == 2 * 8 * 16 * 16
  assert len(executions.unknown_loops(module)) == 1


def test_a_batch_of_products():
  module = _compiled(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (3, 4, 5), (3, 5, 6))
  assert _flops(module) == 3 * 2 * 4 * 5 * 6


LOOP = """HloModule loop

%body (state: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %state = (s32[], f32[4,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %x = f32[4,8]{1,0} get-tuple-element(%state), index=1
  %kernel = f32[4,8]{1,0} custom-call(%x), custom_call_target="tpu_custom_call", metadata={
}"}, backend_config={"body":"a) = b("}
  ROOT %result = (s32[], f32[4,8]{1,0}) tuple(%next, %kernel)
}

%condition (state.1: (s32[], f32[4,8])) -> pred[] {
  %state.1 = (s32[], f32[4,8]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %end = s32[] constant(7)
  ROOT %less = pred[] compare(%i.1, %end), direction=LT
}

ENTRY %main (x.1: f32[4,8]) -> f32[4,8] {
  %x.1 = f32[4,8]{1,0} parameter(0)
  %start = s32[] constant(2)
  %both = (s32[], f32[4,8]{1,0}) tuple(%start, %x.1)
  %loop = (s32[], f32[4,8]{1,0}) while(%both), condition=%condition, body=%body
  ROOT %out = f32[4,8]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_trip_counts_come_from_the_condition_and_kernels_may_break_lines():
  module = hlo.parse(LOOP)
  assert list(module.computations) == ["body", "condition", "main"]
  counts = {e.instruction.name: e.count for e in executions.walk(module)}
  assert counts["kernel"] == 7 - 2 and counts["loop"] == 1
  assert module.computations["body"]["result"].operands == ("next", "kernel")


@pytest.mark.parametrize(
  ("window", "labels", "sizes", "expected"),
  [
    # [4, 8] x [8, 16]
    ("size=1", "0bf_io0->0bf", ((1, 4, 8), (8, 16, 1), (1, 4, 16)), 2 * 4 * 8 * 16),
    # three products [4, 8] x [8, 16], the batch as a dimension with zeros in between
    (
      "size=3 lhs_dilate=3 stride=2",
      "0bf_0io->0bf",
      ((3, 4, 8), (3, 8, 16), (3, 4, 16)),
      3 * 2 * 4 * 8 * 16,
    ),
    # a sum over three batches
    ("size=3", "0bf_0io->0bf", ((3, 4, 8), (3, 8, 16), (1, 4, 16)), 3 * 2 * 4 * 8 * 16),
    # a real convolution whose ends fall on padding: 1 + 2 + ... neighbours
    ("size=3 pad=1_1", "b0f_0io->b0f", ((1, 5, 1), (3, 1, 1), (1, 5, 1)), 2 * (2 + 9 + 2)),
  ],
)
def test_convolutions_count_what_meets_the_image(window, labels, sizes, expected):
  image, kernel, output = (",".join(map(str, s)) for s in sizes)
  module = hlo.parse(
    f"""ENTRY %main (a: f32[{image}], b: f32[{kernel}]) -> f32[{output}] {{
  %a = f32[{image}] parameter(0)
  %b = f32[{kernel}] parameter(1)
  ROOT %c = f32[{output}] convolution(%a, %b), window={{{window}}}, dim_labels={labels}
}}"""
  )
  assert _flops(module) == expected


@pytest.mark.parametrize(
  ("text", "num_bytes", "in_hbm"),
  [
    ("f32[]", 4, True),
    ("bf16[3,5]{1,0}", 30, True),
    ("f32[10,2]{1,0:T(8,128)}", 16 * 128 * 4, True),
    ("f32[10,2]{0,1:T(8,128)}", 8 * 128 * 4, True),
    ("bf16[2,9,130]{2,1,0:T(8,128)(2,1)S(3)}", 2 * 16 * 256 * 2, False),
    ("pred[7]{0:T(512)}", 512, True),
    ("f8e4m3fn[16]{0}", 16, True),
  ],
)
def test_arrays_are_filled_up_to_whole_tiles(text, num_bytes, in_hbm):
  (shape,) = hlo.shapes_of(text)
  assert (shape.num_bytes, shape.in_hbm) == (num_bytes, in_hbm)


def test_tuples_have_several_shapes():
  shapes = hlo.shapes_of("(f32[2]{0}, /*index=1*/s32[3]{0:S(1)}, token[])")
  assert [s.num_bytes for s in shapes] == [8, 12, 0]


class _FakeChip:
  def __init__(self, coords, slice_index):
    self.coords, self.slice_index = coords, slice_index


class _FakeMesh:
  """Two slices of 2 x 4 chips: (slices 2, data 2, fsdp 4)."""

  axis_names = ("slices", "data", "fsdp")
  devices = np.array(
    [_FakeChip((x, y, 0), s) for s in range(2) for x in range(2) for y in range(4)], object
  ).reshape(2, 2, 4)
  size = 16


def _collective(opcode, size, groups):
  module = hlo.parse(
    f"""ENTRY %main (a: f32[{size}]) -> f32[] {{
  %a = f32[{size}] parameter(0)
  ROOT %c = f32[] {opcode}(%a), channel_id=1, {groups}, use_global_device_ids=true
}}"""
  )
  return collectives.find(module, list(executions.walk(module))[-1], _FakeMesh(), CHIP)


@pytest.mark.parametrize(
  ("groups", "axes"),
  [
    ("replica_groups={{0,1,2,3},{4,5,6,7},{8,9,10,11},{12,13,14,15}}", ("fsdp",)),
    ("replica_groups=[4,4]<=[16]", ("fsdp",)),
    ("replica_groups=[8,2]<=[2,2,4]T(0,2,1)", ("data",)),
    ("replica_groups=[8,2]<=[2,8]T(1,0)", ("slices",)),
    ("replica_groups=[2,8]<=[16]", ("data", "fsdp")),
    ("replica_groups=mesh['a'=4,'b'=4] {'b'}", ("fsdp",)),
    ("replica_groups=mesh['a'=4,'b'=4] {'a':(2)2}", ("data",)),
    ("replica_groups=mesh['a'=2,'b'=8], device_ids=([8,2]T(1,0)) {'a'}", ("fsdp",)),
    ("replica_groups={}", ("slices", "data", "fsdp")),
  ],
)
def test_groups_are_named_by_the_axes_that_vary(groups, axes):
  assert _collective("all-reduce", 16, groups).axes == axes


@pytest.mark.parametrize(
  ("opcode", "payload", "wire", "seconds"),
  [
    ("all-gather", 256, 192, 192 / 2),
    ("all-gather-start", 256, 192, 192 / 2),
    ("all-reduce", 64, 96, 96 / 2),
    ("reduce-scatter", 64, 48, 48 / 2),
    ("all-to-all", 64, 48, 48 / 2),  # a quarter of the ring of 4 is one link
  ],
)
def test_bytes_of_collectives_over_a_ring_of_four(opcode, payload, wire, seconds):
  found = _collective(opcode, 16, "replica_groups=[4,4]<=[16]")
  assert (found.payload_bytes, found.wire_bytes, found.seconds) == (payload, wire, seconds)
  assert not found.between_slices


def test_two_dimensions_of_a_torus_carry_twice_as_much():
  found = _collective("reduce-scatter", 16, "replica_groups=[2,8]<=[16]")
  assert found.seconds == 64 * 7 / 8 / 4


def test_collectives_between_slices_take_the_network():
  found = _collective("all-reduce", 16, "replica_groups=[8,2]<=[2,8]T(1,0)")
  assert found.between_slices and found.seconds == 64 / 0.5


def test_permutations():
  found = _collective("collective-permute", 16, "source_target_pairs={{0,0},{1,2},{2,1}}")
  assert (found.axes, found.payload_bytes, found.seconds) == (("fsdp",), 64, 64.0)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs the fake devices of conftest.py")
def test_a_known_all_reduce_in_a_scan():
  mesh = Mesh(
    np.array(jax.devices()[:8]).reshape(2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2
  )

  def shard(x):
    return jax.lax.scan(lambda x, _: (jax.lax.psum(x, "fsdp") / 4, None), x, None, length=3)[0]

  function = jax.shard_map(
    shard, mesh=mesh, in_specs=PartitionSpec("fsdp"), out_specs=PartitionSpec("fsdp"),
    check_vma=False,
  )  # fmt: skip
  rows = NamedSharding(mesh, PartitionSpec("fsdp"))
  argument = jax.ShapeDtypeStruct((4, 100), jnp.float32, sharding=rows)
  module = hlo.parse(jax.jit(function).lower(argument).compile().as_text())
  (exchange,) = work.measure(module, {}, mesh, CHIP).exchanges
  assert (exchange.kind, exchange.axes, exchange.times) == ("all-reduce", "fsdp", 3)
  assert (exchange.payload_bytes, exchange.wire_bytes) == (1200, 1800)


SLICES = """ENTRY %main (table: f32[100,8], i: s32[]) -> f32[100,8] {
  %table = f32[100,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %row = f32[1,8]{1,0} fusion(%table, %i), kind=kLoop, calls=%read
  %fast = f32[1,8]{1,0:S(1)} negate(%row)
  ROOT %new = f32[100,8]{1,0} fusion(%table, %fast, %i), kind=kLoop, calls=%write
}

%read (table.1: f32[100,8], i.1: s32[]) -> f32[1,8] {
  %table.1 = f32[100,8]{1,0} parameter(0)
  %i.1 = s32[] parameter(1)
  ROOT %nested = f32[1,8]{1,0} fusion(%i.1, %table.1), kind=kLoop, calls=%inside
}

%inside (i.3: s32[], table.3: f32[100,8]) -> f32[1,8] {
  %i.3 = s32[] parameter(0)
  %table.3 = f32[100,8]{1,0} parameter(1)
  ROOT %slice = f32[1,8]{1,0} dynamic-slice(%table.3, %i.3, %i.3), dynamic_slice_sizes={1,8}
}

%write (table.2: f32[100,8], row.2: f32[1,8], i.2: s32[]) -> f32[100,8] {
  %table.2 = f32[100,8]{1,0} parameter(0)
  %row.2 = f32[1,8]{1,0:S(1)} parameter(1)
  %i.2 = s32[] parameter(2)
  ROOT %update = f32[100,8]{1,0} dynamic-update-slice(%table.2, %row.2, %i.2, %i.2)
}
"""


def test_slices_cost_memory_traffic_of_their_own_size():
  module = hlo.parse(SLICES)
  bytes_of = {e.instruction.name: traffic.hbm_bytes(module, e) for e in executions.walk(module)}
  # Each scalar index is read; a row has 32 bytes, and what is in S(1) costs nothing.
  assert bytes_of["row"] == 32 + 4 + 32
  assert bytes_of["fast"] == 32
  assert bytes_of["new"] == 32 + 4
  assert bytes_of["slice"] == bytes_of["update"] == 0


@pytest.mark.parametrize(
  ("name", "shape"),
  [
    ("v4-8", "2x2x1"),
    ("v4-128", "4x4x4"),
    ("v4-256", "4x4x8"),
    ("v4-4096", "8x16x16"),
    ("v5p-128", "4x4x4"),
    ("v5litepod-16", "4x4"),
    ("v5e-64", "8x8"),
    ("v6e-256", "16x16"),
    ("v4:4x4x12", "4x4x12"),
  ],
)
def test_slices_by_the_names_people_use(name, shape):
  assert topologies.parse(name)[1] == shape


@pytest.mark.parametrize("name", ["v4-7", "v9-8", "v4", "v6e-2048", "x:2x2"])
def test_unknown_slices_list_those_known(name):
  with pytest.raises(
    ValueError, match=f"Unknown topology '{name}'.*v4-N with N cores of 8, 16"
  ):
    topologies.parse(name)
