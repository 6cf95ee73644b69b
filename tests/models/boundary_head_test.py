"""A boundary head: what it learns and moves, and the patches that it makes."""

import dataclasses
import functools

import causality
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forward import TINY, logits_of
from golden_cases import FLOAT32
from read_pieces import read_in_pieces
from uncached import random_params

from blt_jax import kinds, patching, tokenizer
from blt_jax.decode.language_model import from_blt
from blt_jax.models.boundary_head import HeadPatchedBLT
from blt_jax.patching import PatchingConfig

SEQ_LEN, CHUNK = 24, 5  # bytes of a row, and rows
BOS, EOS, PAD = tokenizer.BOS_ID, tokenizer.EOS_ID, tokenizer.BOE_ID
UNROLLED = {  # compiles faster
  name: dataclasses.replace(getattr(TINY, name), unroll=True)
  for name in ("encoder", "latent", "decoder")
}
PLAIN = dataclasses.replace(TINY, **UNROLLED)
CONFIG = dataclasses.replace(PLAIN, boundary_weight=2.0)
RULE = PatchingConfig(threshold=-0.1, max_patch_length=6)
SLOTS = np.zeros((SEQ_LEN, SEQ_LEN + 1), np.int32)


@functools.cache
def _params():
  return random_params(CONFIG)


@jax.jit
def _run(params, ids, slots):
  """Logits and extras of ids [S, S], and the scores that make the patches."""
  model = HeadPatchedBLT(CONFIG, rule=RULE)

  def forward(model):
    return *model.forward(ids, slots), model.patch(ids, slots.shape[1])[1]

  return model.apply({"params": params}, method=forward)


_text = functools.partial(causality.text, size=SEQ_LEN)


# --- Learning


@functools.partial(jax.jit, static_argnums=0)
def _learn(config, params, ids, lengths):
  """Gradients of the head's loss, and what the forward pass gives."""

  def loss(params):
    model = kinds.build_model(config)
    logits, extras = model.apply({"params": params}, ids, lengths, method="forward")
    return extras.losses["boundary"], (logits, extras)

  return jax.grad(loss, has_aux=True)(params)


def test_a_head_learns_and_moves_nothing_else():
  """Logits are those of the BLT, to the bit."""
  ids = _text(1)[:3]
  ids[1, 10], ids[1, 11], ids[2, 20:] = EOS, BOS, PAD
  starts = np.random.default_rng(0).random((3, SEQ_LEN + 1)) < 0.4
  starts[:, :2] = True
  lengths = patching.lengths_from_starts(starts)
  without = {name: value for name, value in _params().items() if name != "boundary_head"}
  gradients, (logits, extras) = _learn(CONFIG, _params(), ids, lengths)
  np.testing.assert_array_equal(logits, logits_of(PLAIN, without, ids, lengths))
  own = gradients.pop("boundary_head")
  assert own["bias"].shape == (1,) and all(jnp.any(leaf) for leaf in jax.tree.leaves(own))
  assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(gradients))
  moving = dataclasses.replace(CONFIG, boundary_gradient=True)
  gradients, _ = _learn(moving, _params(), ids, lengths)
  moved = {name for name, part in gradients.items() if any(map(jnp.any, jax.tree.leaves(part)))}
  assert moved == {"boundary_head", "embedder", "encoder"}

  # What it is asked: whether the next byte starts a patch, where no rule says so.
  is_open = np.ones(ids.shape, bool)
  is_open[:, 0] = is_open[1, [10, 11]] = is_open[2, 20:] = False
  assert extras.metrics["boundary_targets"] == is_open.sum()
  assert extras.metrics["boundary_starts"] == (is_open & starts[:, 1:]).sum()
  scores = np.asarray(_run(_params(), np.resize(ids, SLOTS[:, 1:].shape), SLOTS)[2][:3])
  odds = np.where(starts[:, 1:], scores, -scores)
  found = {
    "boundary_nats": np.log1p(np.exp(-odds)),
    "boundary_hits": (scores > 0) == starts[:, 1:],
    "boundary_found": starts[:, 1:] & (scores > 0),
  }
  for name, values in found.items():
    np.testing.assert_allclose(extras.metrics[name], values[is_open].sum(), rtol=1e-5)
  want = 2 * extras.metrics["boundary_nats"]
  np.testing.assert_allclose(extras.losses["boundary"], want, rtol=1e-6)


# --- Patches of its own


def test_later_bytes_change_nothing_before_them():
  """Though they make other patches there."""

  def run(ids):
    logits, extras, _ = _run(_params(), ids, SLOTS)
    return logits, extras.patch_lengths

  assert causality.changes(run, SEQ_LEN) <= 1e-5


def test_gradients_flow_from_the_past_and_only_from_there():
  """With respect to embeddings: rows of tables, as every id of the row is another one."""
  ids, model = causality.other_ids(SEQ_LEN), HeadPatchedBLT(CONFIG, rule=RULE)
  gradients_of = causality.gradients_of(model, _params(), ids, SLOTS[:1])

  def find(position):
    gradients = gradients_of(position)
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradients["boundary_head"]))
    yield gradients["embedder"]["bytes"]["embedding"][ids]

  causality.check_gradients(find, SEQ_LEN)


def test_reads_as_the_full_forward():
  """Random pieces of rows of documents, some followed by bytes that are taken back."""
  text = _text(5)
  text[2, 9], text[2, 10], text[3, 4:6] = EOS, BOS, EOS
  want, extras, _ = _run(_params(), text, SLOTS)
  model = from_blt(kinds.build_model(CONFIG), _params(), RULE, patched_by="head")
  rows = 5
  got, cache = read_in_pieces(model.reader, model.weights, text[:rows], CHUNK, SEQ_LEN)
  chex.assert_trees_all_close(got, np.asarray(want[:rows]), **FLOAT32)
  usual = HeadPatchedBLT(CONFIG, rule=PatchingConfig(threshold=0.0, max_patch_length=6))
  _, others = usual.apply({"params": _params()}, text, SLOTS, method="forward")
  assert (others.patch_lengths != extras.patch_lengths).any()
  starts, entropies = model.reader.patches(cache)
  assert entropies is None and model.reader.drafters == ()
  for row, lengths in zip(starts, extras.patch_lengths[:rows], strict=True):
    begins = (np.cumsum(lengths) - lengths)[lengths > 0]
    np.testing.assert_array_equal(np.flatnonzero(row), begins[begins < SEQ_LEN])
    assert lengths.max() <= 6


# --- Bad input


def test_what_makes_no_sense():
  with pytest.raises(ValueError, match="boundary_weight is -1; it must be >= 0"):
    dataclasses.replace(TINY, boundary_weight=-1)
  with pytest.raises(ValueError, match="of a boundary head: set boundary_weight above 0"):
    dataclasses.replace(TINY, boundary_gradient=True)
  with pytest.raises(ValueError, match="set entropy_state_dim or boundary_weight to 0"):
    dataclasses.replace(CONFIG, entropy_state_dim=8)
  with pytest.raises(ValueError, match="needs a threshold of log odds: 0.0 as a rule"):
    rule = PatchingConfig("byte", threshold=None)
    from_blt(kinds.build_model(CONFIG), None, rule, patched_by="head")
  with pytest.raises(ValueError, match="has no boundary head to patch by; train one with"):
    from_blt(kinds.build_model(PLAIN), None, RULE, patched_by="head")
