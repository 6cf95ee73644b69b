"""Tests of ops/norm.py, ops/rope.py and ops/losses.py."""

import chex
import golden_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import BFLOAT16, FLOAT32, SAME

from blt_jax.ops import losses, norm, rope
from blt_jax.ops.triton import norm as norm_kernel

PRIMITIVES = golden_cases.load("primitives")


def golden(name):
  return [pytest.param(c, f, id=c["id"]) for c, f in PRIMITIVES if c["name"] == name]


def test_rms_norm_by_hand():
  x = jnp.array([[3.0, 4.0], [0.0, 0.0]])
  got = norm.rms_norm(x, jnp.array([1.0, 2.0]), epsilon=0.5)
  want = np.array([[3, 8], [0, 0]]) / np.sqrt([[12.5 + 0.5], [0.5]])
  chex.assert_trees_all_close(got, want.astype(np.float32), **SAME)


def test_rms_norm_computes_in_float32():
  x = jax.random.normal(jax.random.key(0), (4, 64)).astype(jnp.bfloat16)
  scale = jnp.linspace(0.5, 2.0, 64)
  got = norm.rms_norm(x, scale, 1e-5)
  assert got.dtype == jnp.bfloat16
  want = norm.rms_norm(x.astype(jnp.float32), scale, 1e-5).astype(jnp.bfloat16)
  chex.assert_trees_all_equal(got, want)


def test_the_kernel_of_norms_interpreted():
  keys = jax.random.split(jax.random.key(0))
  x, scale = jax.random.normal(keys[0], (3, 512)), jax.random.normal(keys[1], (512,))
  got = norm_kernel.rms_norm(x, scale, epsilon=0.5, interpret=True)
  chex.assert_trees_all_close(got, norm.rms_norm(x, scale, epsilon=0.5), **FLOAT32)


@pytest.mark.parametrize("case, fields", golden("rope"))
def test_golden_rope(case, fields):
  seq_len, head_dim = fields["q"].shape[1], fields["q"].shape[3]
  cos, sin = rope.rope_table(jnp.arange(seq_len), head_dim, case["theta"])
  chex.assert_shape([cos, sin], (seq_len, 1, head_dim))
  for ours, theirs in ((cos, fields["cos"]), (sin, fields["sin"])):
    chex.assert_trees_all_close(ours[:, 0], np.repeat(theirs, 2, axis=1), **FLOAT32)
  for name in ("q", "k"):
    rotated = rope.apply_rope(fields[name], (cos, sin))
    chex.assert_trees_all_close(rotated, fields[f"{name}_out"], **FLOAT32)


def test_rope_by_hand():
  table = rope.rope_table(jnp.array([0, 1]), 4, theta=100.0)
  x = jnp.broadcast_to(jnp.array([1.0, 2.0, 3.0, 4.0]), (1, 2, 1, 4))
  slow, fast = 0.1, 1.0  # angles of the two pairs at position 1
  want = [
    np.cos(fast) - 2 * np.sin(fast),
    np.sin(fast) + 2 * np.cos(fast),
    3 * np.cos(slow) - 4 * np.sin(slow),
    3 * np.sin(slow) + 4 * np.cos(slow),
  ]
  got = rope.apply_rope(x, table)
  chex.assert_trees_all_close(got[0, :, 0], np.float32([[1, 2, 3, 4], want]), **SAME)


def test_rope_takes_positions_by_row():
  x = jax.random.normal(jax.random.key(0), (2, 5, 3, 8))
  positions = jnp.array([[0, 1, 2, 3, 4], [7, 8, 9, 2, 0]])
  got = rope.apply_rope(x, rope.rope_table(positions, 8, 1e4))
  for row in range(2):
    want = rope.apply_rope(x[row : row + 1], rope.rope_table(positions[row], 8, 1e4))
    chex.assert_trees_all_close(got[row : row + 1], want, **SAME)


def test_rope_scores_depend_on_distance_only():
  query, key = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 16))

  def score(i, j):
    rotated = [
      rope.apply_rope(x, rope.rope_table(jnp.array([p]), 16, 1e4))
      for x, p in ((query, i), (key, j))
    ]
    return jnp.vdot(*rotated)

  chex.assert_trees_all_close(score(3, 1), score(12, 10), **FLOAT32)


def test_pairs_are_swapped_on_a_tpu_as_elsewhere():
  x = jax.random.normal(jax.random.key(0), (2, 3, 4, 8))
  chex.assert_trees_all_close(rope._swap_on_tpu(x), rope._swap(x), atol=1e-6)


def test_rope_keeps_the_dtype():
  x = jax.random.normal(jax.random.key(0), (1, 6, 2, 8))
  table = rope.rope_table(jnp.arange(6), 8, 1e4)
  got = rope.apply_rope(x.astype(jnp.bfloat16), table)
  assert got.dtype == jnp.bfloat16
  chex.assert_trees_all_close(got.astype(jnp.float32), rope.apply_rope(x, table), **BFLOAT16)


@pytest.mark.parametrize("case, fields", golden("entropy_nats"))
def test_golden_entropy(case, fields):
  del case
  entropy = losses.entropy_nats(fields["logits"])
  chex.assert_trees_all_close(entropy, fields["entropy"], **FLOAT32)


def test_entropy_by_hand():
  logits = jnp.array([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, -jnp.inf, -jnp.inf], [1e4, 0, 0, 0]])
  want = np.log(np.float32([4, 2, 1]))
  chex.assert_trees_all_close(losses.entropy_nats(logits), want, **SAME)


def test_entropy_has_a_finite_gradient():
  gradient = jax.grad(lambda x: losses.entropy_nats(x).sum())(jnp.array([[1e4, 0.0, -1e4]]))
  chex.assert_tree_all_finite(gradient)


def test_cross_entropy_by_hand():
  logits = jnp.log(jnp.array([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25]]))
  got = losses.cross_entropy_nats(logits, jnp.array([2, 0]))
  chex.assert_trees_all_close(got, -np.log(np.float32([0.7, 0.5])), **SAME)


def test_losses_compute_in_float32():
  logits = (10 * jax.random.normal(jax.random.key(0), (3, 5, 260))).astype(jnp.bfloat16)
  targets = jnp.arange(15).reshape(3, 5)
  wide = logits.astype(jnp.float32)
  for loss in (losses.entropy_nats, lambda x: losses.cross_entropy_nats(x, targets)):
    assert loss(logits).dtype == jnp.float32
    chex.assert_trees_all_equal(loss(logits), loss(wide))


def test_entropy_is_the_mean_cross_entropy_under_the_prediction():
  logits = jax.random.normal(jax.random.key(0), (7, 11))
  every_target = jnp.arange(11)[:, None] * jnp.ones((1, 7), jnp.int32)
  per_target = jax.vmap(losses.cross_entropy_nats, (None, 0), 1)(logits, every_target)
  expected = (jax.nn.softmax(logits) * per_target).sum(axis=-1)
  chex.assert_trees_all_close(losses.entropy_nats(logits), expected, **SAME)
