"""Losses of a distillation against NumPy, written from their definition; zero gradients."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy_blocks
import pytest
from uncached import random_params

from blt_jax import patching
from blt_jax.models.blt import BLT
from blt_jax.models.config import (
  BLTConfig,
  BPELMConfig,
  TransformerConfig,
)
from blt_jax.training import distillation

LAYERS = 1  # of two, after which states are compared
LOCAL = TransformerConfig(dim=16, num_layers=1, num_heads=2, window=8, mlp_multiple_of=8)
BLOCKS = TransformerConfig(dim=24, num_layers=2, num_heads=2, mlp_multiple_of=8)
TEACHER = BPELMConfig(BLOCKS, vocab_size=40, tie_embeddings=False)
MODEL = BLT(BLTConfig(LOCAL, BLOCKS, LOCAL, None, None, hash_sizes=()))
TOKENS = np.array([[1, *range(4, 13), 2, 1], [1, *range(20, 29), 0, 0]], np.int32)
LENGTHS = np.array([[1, 3, 2, 4, 1, 2], [1, 4, 1, 4, 3, 0]], np.int32)
BATCH = {
  "tokens": TOKENS,
  "targets": np.append(TOKENS[:, 1:], [[7], [0]], axis=1),
  "loss_mask": np.array([[1] * 10 + [0, 1], [1] * 9 + [0] * 3], bool),
  "patch_lengths": LENGTHS,
  "teacher_ids": np.array([[1, 30, 31, 32, 2, 0], [1, 33, 0, 34, 0, 0]], np.int32),
  "teacher_targets": np.array([[30, 31, 32, 2, 0, 0], [33, 0, 34, 0, 0, 0]], np.int32),
}


@pytest.fixture(scope="module", name="params")
def _params():
  """Of the student, with the teacher's blocks; and the rest of the teacher."""
  head, params = random_params(TEACHER), random_params(MODEL.config)
  params["latent"]["transformer"] = head.pop("transformer")
  return params, head


@jax.jit
def _run(params, head, batch, weights):
  """Total, metrics and the gradients of the total, in both; `weights` as the config's."""
  names = "state_weight", "likelihood_weight", "cross_entropy_weight"
  config = distillation.DistillationConfig(LAYERS, temperature=5.0)
  config = dataclasses.replace(config, **dict(zip(names, weights, strict=True)))
  loss = distillation.make_loss(MODEL, TEACHER, config)
  run = jax.value_and_grad(lambda p, h: loss(p, batch, h), argnums=(0, 1), has_aux=True)
  return run(params, head)


@jax.jit
def _student(params, latents):
  """What the encoder gives the latent transformer, and logits from given latents."""

  def run(model):
    ids = patching.patch_ids(LENGTHS, TOKENS.shape[1])
    states, patches = model.encode(TOKENS, ids, LENGTHS.shape[1])
    readers = patching.decoder_patch_ids(LENGTHS, TOKENS.shape[1])
    return model.latent.project(patches), model.decode(TOKENS, states, latents, readers, ids)

  return MODEL.apply({"params": params}, method=run)


def _log_softmax(x):
  x = x - x.max(-1, keepdims=True)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def _expected(params, head):
  """State distance, piece likelihood and cross entropy, each a mean; NumPy, row by row."""
  params, head = jax.tree.map(lambda x: np.asarray(x, np.float64), (params, head))
  layers = params["latent"]["transformer"]["layers"]
  first, rest = (
    {"layers": jax.tree.map(lambda x, cut=cut: x[cut], layers)}
    for cut in (slice(LAYERS), slice(LAYERS, None))
  )

  def visible(row):  # patches of the documents; one ends with patch 4 of the first row
    document = np.array([[0, 0, 0, 0, 0, 1], [0] * 6])[row]
    return numpy_blocks.causal(6) & (document[:, None] == document)

  wanted, latents, pieces = [], [], []
  for row in range(2):
    x = head["embedding"]["embedding"][BATCH["teacher_ids"][row]]
    wanted.append(numpy_blocks.run_stack(first, x, visible(row), 2))
    latents.append(numpy_blocks.run_stack(rest, wanted[-1], visible(row), 2))
    pieces.append(_log_softmax(numpy_blocks.finish(head, latents[-1])))
  patches, logits = _student(params, np.array(latents, np.float32))
  distances, likelihoods, nats = [], [], []
  for row in range(2):
    states = numpy_blocks.run_stack(first, np.float64(patches[row]), visible(row), 2)
    bytes_ = _log_softmax(np.float64(logits[row]))[np.arange(12), BATCH["targets"][row]]
    nats.append(-bytes_[BATCH["loss_mask"][row]])
    starts = np.cumsum(LENGTHS[row]) - LENGTHS[row]
    for patch in range(6):
      if BATCH["teacher_ids"][row, patch]:
        distance = np.linalg.norm(states[patch] - wanted[row][patch]) / np.sqrt(24)
        distances.append(distance)
      if piece := BATCH["teacher_targets"][row, patch]:
        start = starts[patch + 1]
        product = np.prod(np.exp(bytes_[start - 1 : start - 1 + LENGTHS[row, patch + 1]]))
        p, q = np.exp(pieces[row][patch, piece]) ** 0.2, product**0.2
        likelihoods.append(-(p * np.log(q) + (1 - p) * np.log(1 - q)))
  return np.mean(distances), np.mean(likelihoods), np.concatenate(nats).mean()


def test_losses_are_means_as_the_papers_text_says(params):
  batch = distillation.weigh(jax.tree.map(jnp.asarray, BATCH))
  weights = np.array([4.0, 2.0, 0.5], np.float32)
  (total, metrics), _ = _run(*params, batch, weights)
  expected = _expected(*params)
  found = (
    metrics["state_distance"] / metrics["compared_patches"],
    metrics["piece_likelihood"] / metrics["compared_pieces"],
    metrics["nats"] / metrics["targets"],
  )
  np.testing.assert_allclose(found, expected, rtol=1e-4)
  assert (metrics["compared_patches"], metrics["compared_pieces"]) == (8, 6)
  np.testing.assert_allclose(total / metrics["targets"], weights @ expected, rtol=1e-4)


def _norms(gradients):
  return {name: float(jax.tree.reduce(lambda a, x: a + jnp.abs(x).sum(), part, 0.0))
          for name, part in gradients.items()}  # fmt: skip


def test_the_teacher_has_no_gradient_and_each_part_its_own(params):
  batch = distillation.weigh(jax.tree.map(jnp.asarray, BATCH))
  _, (of_student, of_head) = _run(*params, batch, np.ones(3, np.float32))
  blocks = of_student["latent"].pop("transformer")
  assert not any(x.any() for x in jax.tree.leaves((of_head, blocks)))
  assert min(_norms(of_student).values()) > 0 and of_student["latent"]["projection"]
  _, (of_states, _) = _run(*params, batch, np.array([1, 0, 0], np.float32))
  norms = _norms(of_states)
  assert norms["encoder"] > 0 and norms["decoder"] == norms["output"] == 0


def test_states_are_compared_below_the_layers_above(params):
  batch = distillation.weigh(jax.tree.map(jnp.asarray, BATCH))
  student, head = params
  weights = np.array([1, 0, 0], np.float32)
  (_, before), (gradients, _) = _run(student, head, batch, weights)
  layers = student["latent"]["transformer"]["layers"]

  def run(scales):
    changed = jax.tree.map(lambda x: x * scales.reshape(-1, *[1] * (x.ndim - 1)), layers)
    latent = student["latent"] | {"transformer": {"layers": changed}}
    return _run(student | {"latent": latent}, head, batch, weights)

  (_, above), (same, _) = run(np.array([1, 1.5], np.float32))
  assert above["state_distance"] == before["state_distance"] and above["nats"] != before["nats"]
  chex.assert_trees_all_equal(same, gradients)
  (_, below), _ = run(np.array([1.5, 1], np.float32))
  assert below["state_distance"] != before["state_distance"]


def test_parts_of_a_batch_add_up(params):
  batch = distillation.weigh(jax.tree.map(jnp.asarray, BATCH))
  weights = np.array([1, 2, 3], np.float32)
  whole = _run(*params, batch, weights)

  def only(row):  # the other one counts nowhere
    kept = np.arange(2)[:, None] == row
    names = "loss_mask", "teacher_ids", "teacher_targets"
    masked = {n: jnp.where(kept, batch[n], 0).astype(batch[n].dtype) for n in names}
    return _run(*params, batch | masked, weights)

  (total, _), (gradients, _) = jax.tree.map(jnp.add, only(0), only(1))
  np.testing.assert_allclose(total, whole[0][0], rtol=1e-5)
  chex.assert_trees_all_close(gradients, whole[1][0], atol=1e-5)


@pytest.mark.parametrize("nats", [0.0, 1e-9, 200.0])
@pytest.mark.parametrize("wanted", [0.0, 1.0, 200.0])
def test_certain_and_impossible_pieces_give_finite_losses(nats, wanted):
  run = jax.value_and_grad(lambda x: distillation.likelihood_losses(x, wanted, 5.0))
  assert np.isfinite(run(nats)).all()


def test_equal_states_are_at_no_distance_and_have_no_slope():
  x = jnp.ones((1, 2, 3))
  run = jax.value_and_grad(lambda y: distillation.state_distances(y, x).sum())
  distance, slope = run(x)
  assert distance < 1e-5 and not slope.any()
