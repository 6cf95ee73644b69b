"""Patching a few bytes at a time against patching whole rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blt_jax import patching
from blt_jax.decode.cursor import advance_cursor, check_causal, init_cursor
from blt_jax.patching import PatchingConfig

LENGTH, CHUNK = 40, 4
RULES = {
  "global": PatchingConfig(threshold=0.6),
  "monotonic": PatchingConfig(threshold=0.1, monotonic=True),
  "add": PatchingConfig(threshold=0.4, threshold_add=0.1),
  "cumulative": PatchingConfig(threshold=1.5, cumulative=True),
  "space": PatchingConfig(scheme="space"),
  "static": PatchingConfig(scheme="static", patch_size=3),
  "uneven": PatchingConfig(scheme="static", patch_size=4.5),
  "byte": PatchingConfig(scheme="byte"),
  "lookup": PatchingConfig(scheme="lookup"),
  "short": PatchingConfig(threshold=0.8, max_patch_length=3),
  "short static": PatchingConfig(scheme="static", patch_size=5, max_patch_length=2),
}


@functools.partial(jax.jit, static_argnums=0)
def _advance(config, cursor, tokens, entropies, table, count):
  begins, trail = advance_cursor(config, cursor, tokens, entropies, table, LENGTH)
  kept = jax.tree.map(lambda x: jax.vmap(lambda row, n: row[n])(x, count), trail)
  return begins, kept


@pytest.mark.parametrize("name", RULES)
def test_pieces_equal_the_whole(name):
  config, rng = RULES[name], np.random.default_rng(0)
  tokens = rng.choice([2, 14, 36, 101, 102, 103, 200], (3, LENGTH)).astype(np.int32)
  entropies = rng.random((3, LENGTH)).astype(np.float32)
  table = rng.random((260, 260)) < 0.2
  lengths = patching.patch_lengths(
    tokens, config, entropies, lookup_table=table if name == "lookup" else None
  )
  starts = np.zeros((3, LENGTH + 2), bool)
  np.put_along_axis(starts, np.minimum(np.cumsum(lengths, axis=1), LENGTH + 1), True, axis=1)
  cursor, position = init_cursor(3), np.zeros(3, int)
  padded = [np.pad(x, ((0, 0), (0, CHUNK))) for x in (tokens, entropies)]
  while (position < LENGTH).any():
    count = np.minimum(rng.integers(0, CHUNK + 1, 3), LENGTH - position)
    at = position[:, None] + np.arange(CHUNK)
    piece = [np.take_along_axis(x, at, axis=1) for x in padded]
    begins, cursor = _advance(config, cursor, *piece, jnp.asarray(table), count)
    for row in range(3):
      after = position[row] + 1 + np.arange(count[row])
      np.testing.assert_array_equal(begins[row, : count[row]], starts[row, after])
    position += count
    number = [starts[row, : position[row] + 1].sum() for row in range(3)]
    np.testing.assert_array_equal(cursor.patch, number)


def test_rules_that_look_ahead_are_refused():
  with pytest.raises(ValueError, match="Top-k.*threshold"):
    check_causal(PatchingConfig(threshold=None, patch_size=4))
  with pytest.raises(ValueError, match="bpe"):
    check_causal(PatchingConfig(scheme="bpe"))
  with pytest.raises(ValueError, match="split_first"):
    check_causal(PatchingConfig(scheme="static", patch_size=4, split_first=False))
