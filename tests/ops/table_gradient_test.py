"""The GPU kernels for the gradient of a table, interpreted, against numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import SAME
from gpu_lowering import lowered
from table_lookups import LOOKUPS, ROWS, patterns

from blt_jax.ops import hash_tables
from blt_jax.ops.triton import table_gradient

DIM = 32


def add_rows(gradient, numbers, dtype):
  """`add_rows` of lookups [n] in any order."""
  order = np.argsort(numbers, kind="stable").astype(np.int32)
  return table_gradient.add_rows(
    jnp.asarray(gradient), numbers[order], order % len(gradient), ROWS, dtype, interpret=True
  )


@pytest.mark.parametrize("spare", [0, 5])
@pytest.mark.parametrize("pattern", patterns(np.random.default_rng(0)))
def test_any_skew(pattern, spare):
  """Chunks of one row and of many, rows of many chunks, a last chunk that is not full."""
  rng = np.random.default_rng(1)
  numbers = patterns(rng)[pattern].reshape(-1).astype(np.int32)[spare:]
  gradient = rng.normal(size=(LOOKUPS[1] * LOOKUPS[2], DIM)).astype(np.float32)
  want = np.zeros((ROWS, DIM))
  np.add.at(want, numbers, gradient[np.arange(len(numbers)) % len(gradient)])
  np.testing.assert_allclose(add_rows(gradient, numbers, jnp.float32), want, **SAME)


def test_bfloat16_tables_add_in_float32():
  """Added one by one in bfloat16, 256 + 1 stays 256."""
  numbers = np.sort(np.r_[np.full(300, 7), np.full(10, 9)]).astype(np.int32)
  got = add_rows(np.ones((5, DIM), np.float32), numbers, jnp.bfloat16)
  want = np.zeros((ROWS, DIM))
  want[7], want[9] = 300, 10
  assert got.dtype == jnp.bfloat16
  np.testing.assert_array_equal(np.float32(got), want)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_door_leads_to_kernels_that_lower(dtype, monkeypatch):
  look_up = functools.partial(hash_tables.lookup_sum, dtype="bfloat16")
  table, rows = jnp.zeros((ROWS, DIM), dtype), jnp.zeros(LOOKUPS, jnp.int32)
  gradient = jax.grad(lambda table, rows: look_up(table, rows).sum())
  text = lowered(gradient, monkeypatch, table, rows)
  assert "table_gradient_chunks" in text and "table_gradient_rows" in text
