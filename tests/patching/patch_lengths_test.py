"""Tests of patching.py: lengths, and what follows from them."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blt_jax import patching


def test_ids_by_hand():
  lengths = np.array([[1, 4, 5, 2]])
  want = [0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 3]
  assert patching.patch_ids(lengths, 11).tolist() == [want]
  want = [0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2]
  assert patching.decoder_patch_ids(lengths, 11).tolist() == [want]


def test_split_long_by_hand():
  lengths = np.array([[1, 9, 4, 0, 0]])
  assert patching.split_long(lengths, 4).tolist() == [[1, 4, 4, 1, 4, 0, 0]]


def test_lengths_from_starts_counts_byte_zero_as_a_start():
  starts = np.array([[False, False, True, True], [False] * 4])
  assert patching.lengths_from_starts(starts).tolist() == [[2, 1, 1], [4, 0, 0]]


LENGTHS = st.lists(st.integers(0, 12), min_size=1, max_size=12).map(
  lambda lengths: np.array([[1, *sorted(lengths, key=lambda n: n == 0)]], np.int32)
)


@given(LENGTHS, st.integers(1, 15))
def test_ids_follow_the_lengths(lengths, seq_len):
  column = np.arange(lengths.shape[1] + 1)
  owners = np.repeat(column, [*lengths[0], seq_len + 1]).astype(np.int32)
  ids = patching.patch_ids(lengths, seq_len)
  chex.assert_trees_all_equal(ids[0], owners[:seq_len])
  decoder_ids = patching.decoder_patch_ids(lengths, seq_len)
  chex.assert_trees_all_equal(decoder_ids[0], owners[1 : seq_len + 1] - 1)


@given(LENGTHS, st.integers(1, 6))
def test_splitting_keeps_bytes_and_empty_patches(lengths, limit):
  want = []
  for length in lengths[0]:
    want += [limit] * (length // limit)
    want += [length % limit] if length % limit or not length else []
  assert patching.split_long(lengths, limit).tolist() == [want]


def test_splitting_under_jit_fills_the_width_with_zeros():
  lengths = np.random.default_rng(0).integers(0, 9, (300, 12)).astype(np.int32)
  want = patching.split_long(lengths, 3)
  width = want.shape[1] + 5
  split = jax.jit(functools.partial(patching.split_long, max_patch_length=3, num_patches=width))
  want = np.pad(want, ((0, 0), (0, 5)))
  chex.assert_trees_all_equal(np.asarray(split(jnp.asarray(lengths))), want)


@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_starts_become_lengths(starts):
  lengths = patching.lengths_from_starts(np.array([starts]))
  found = np.flatnonzero([True, *starts[1:]])
  chex.assert_trees_all_equal(lengths[0], np.diff([*found, len(starts)]).astype(np.int32))


def test_split_long_needs_a_width_under_jit():
  with pytest.raises(ValueError, match="needs num_patches"):
    jax.jit(lambda lengths: patching.split_long(lengths, 2))(jnp.ones((1, 3), jnp.int32))


@pytest.mark.parametrize(
  "lengths, message",
  [
    ([1, 4], r"must be \[B, P\], got shape \(2,\)"),
    ([[1, 6, -2]], "negative"),
    ([[1, 4], [1, 3]], "row 1 sum to 4; they must sum to S . 1 = 5"),
    ([[2, 3]], "first patch of row 0 has 2 bytes"),
    ([[1, 4], [0, 5]], "first patch of row 1 has 0 bytes"),
    ([[1, 0, 4]], "empty patches inside"),
  ],
)
@pytest.mark.parametrize("to_array", [np.asarray, jnp.asarray])
def test_check_lengths_names_the_problem(lengths, message, to_array):
  with pytest.raises(ValueError, match=message):
    patching.check_lengths(to_array(np.array(lengths)), seq_len=4)


def test_check_lengths_accepts_what_fits_and_what_is_traced():
  patching.check_lengths(np.array([[1, 2, 2], [1, 4, 0]]), seq_len=4)

  def traced(lengths):
    patching.check_lengths(lengths, seq_len=4)
    return lengths

  jax.jit(traced)(jnp.array([[3, 1]]))
  with pytest.raises(ValueError, match="must be"):
    jax.jit(traced)(jnp.array([3, 1]))
