"""Attention to a ring of past positions."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import SAME

from blt_jax.ops import ring_attention as ring_attention_module
from blt_jax.ops.attention import attention
from blt_jax.ops.ring_attention import ring_attention, write_ring

LENGTH = 24

_attend = jax.jit(ring_attention, static_argnums=8)


def _inputs(seed=0):
  keys = jax.random.split(jax.random.key(seed), 3)
  query = jax.random.normal(keys[0], (2, LENGTH, 4, 8))
  key, value = (jax.random.normal(k, (2, LENGTH, 2, 8)) for k in keys[1:])
  return query, key, value


def _documents():
  starts = np.zeros((2, LENGTH), np.int32)
  starts[0, 7:], starts[0, 15:], starts[1, 4:] = 7, 15, 4
  return starts, np.cumsum(np.diff(starts, axis=1, prepend=0) > 0, axis=1)


def _read(inputs, starts, window, size, chunk, garbage=False, attend=_attend):
  """Reads rows in pieces; with `garbage`, each time wrong bytes first, to be taken back."""
  rings = [jnp.zeros((2, size, 2, 8))] * 2
  outputs = []
  for start in range(0, LENGTH, chunk):
    at, count = jnp.full(2, start), jnp.full(2, chunk)
    piece = [x[:, start : start + chunk] for x in (*inputs, starts)]
    if garbage:
      wrong = [x + 7 for x in piece[:3]]
      _, *rings = attend(*wrong, *rings, at, count, piece[3], window)
    output, *rings = attend(*piece[:3], *rings, at, count, piece[3], window)
    outputs.append(output)
  return np.concatenate(outputs, axis=1)


@pytest.mark.parametrize("window, size", [(5, 5), (5, 8), (40, LENGTH), (None, LENGTH)])
@pytest.mark.parametrize("chunk", [1, 4, LENGTH])
def test_pieces_equal_the_whole(window, size, chunk):
  inputs, (starts, documents) = _inputs(), _documents()
  want = attention(*inputs, window=window, document_ids=documents)
  chex.assert_trees_all_close(_read(inputs, starts, window, size, chunk), want, **SAME)


@pytest.mark.parametrize("block", [4, 7])
@pytest.mark.parametrize("chunk", [1, 4])
def test_of_a_long_ring_only_what_is_filled_is_read(block, chunk, monkeypatch):
  monkeypatch.setattr(ring_attention_module, "_BLOCK", block)
  inputs, (starts, documents) = _inputs(), _documents()
  want = attention(*inputs, document_ids=documents)
  attend = jax.jit(lambda *x: ring_attention(*x), static_argnums=8)  # traced anew
  got = _read(inputs, starts, None, LENGTH, chunk, attend=attend)
  chex.assert_trees_all_close(got, want, **SAME)


@pytest.mark.parametrize("window, size", [(5, 8), (None, LENGTH)])
def test_what_is_taken_back_is_never_seen(window, size):
  inputs, (starts, documents) = _inputs(1), _documents()
  want = attention(*inputs, window=window, document_ids=documents)
  got = _read(inputs, starts, window, size, 4, garbage=True)
  chex.assert_trees_all_close(got, want, **SAME)


def test_rows_write_as_much_as_they_count():
  ring = write_ring(jnp.zeros((3, 4)), jnp.arange(1.0, 19).reshape(3, 6), jnp.array([0, 3, 1]),
                    jnp.array([0, 2, 6]))  # fmt: skip
  np.testing.assert_array_equal(ring, [[0, 0, 0, 0], [8, 0, 0, 7], [16, 17, 18, 15]])
