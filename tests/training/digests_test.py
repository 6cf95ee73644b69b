"""Digests tell arrays apart, and do not depend on where arrays lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from blt_jax.parallel import sharding
from blt_jax.training import digests


def _by_hand(x):
  """As `digests._weighted_sum`, in integers without end."""
  words = np.ascontiguousarray(x).view(f"u{min(x.dtype.itemsize, 4)}").ravel()
  total = 0
  for i, word in enumerate(words.tolist()):
    mixed = (i + 1) * 0x9E3779B1 % 2**32
    mixed = (mixed ^ mixed >> 15) * 0x85EBCA77 % 2**32
    total += word * ((mixed ^ mixed >> 13) | 1)
  return f"{x.dtype.name} {total % 2**32:08x}"


def _arrays():
  rng = np.random.default_rng(0)
  return {
    "float32": rng.normal(size=(3, 8, 5)).astype(np.float32),
    "bfloat16": np.asarray(jnp.asarray(rng.normal(size=(16, 3)), jnp.bfloat16)),
    "int32": rng.integers(-9, 9, (8,), np.int32),
    "bool": rng.integers(0, 2, (8, 2)).astype(bool),
    "scalar": np.array(7, np.int32),
    "empty": np.zeros((0, 3), np.float32),
  }


def test_they_are_weighted_sums_of_words():
  found = digests.digests_of({"a": _arrays()})
  for name, array in _arrays().items():
    wanted = array if name != "bfloat16" else array.view(np.uint16)
    expected = _by_hand(wanted).partition(" ")[2]
    assert found[f"a/{name}"] == f"{array.dtype.name} {expected}"


@pytest.mark.parametrize("spec", [("data",), (None, "fsdp"), (("data", "fsdp"),)])
def test_sharding_changes_nothing(spec):
  mesh = sharding.make_mesh(data=2, fsdp=4)
  x = np.random.default_rng(1).normal(size=(16, 24)).astype(np.float32)
  placed = jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
  assert digests.digests_of({"x": placed}) == digests.digests_of({"x": x})


def test_every_flipped_bit_is_seen():
  rng = np.random.default_rng(2)
  x = rng.normal(size=(9, 7)).astype(np.float32)
  saved = digests.digests_of({"x": x, "y": x})
  assert not digests.differing({"x": x, "y": x}, saved)
  for _ in range(100):
    damaged = x.copy()
    damaged.view(np.uint32).reshape(-1)[rng.integers(x.size)] ^= np.uint32(
      1 << rng.integers(32)
    )
    assert digests.differing({"x": damaged, "y": x}, saved) == ["x"]
  assert digests.differing({"x": x[::-1].copy(), "y": np.zeros_like(x)}, saved) == ["x", "y"]
