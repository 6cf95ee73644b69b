"""The BLT of several resolutions: what each logit depends on, its patches, its slots."""

import dataclasses
import functools

import causality
import chex
import jax
import mixture_cases
import numpy as np
import pytest
from forward import TINY, logits_of
from golden_cases import SAME
from mixture_cases import CONFIGS, SEQ_LEN, run
from uncached import random_params

from blt_jax import patching, tokenizer
from blt_jax.models import init
from blt_jax.models.mixture import MixtureBLT, MixtureConfig
from blt_jax.patching import PatchingConfig

BOS, EOS = tokenizer.BOS_ID, tokenizer.EOS_ID
each = pytest.mark.parametrize("name", CONFIGS)


_text = functools.partial(causality.text, size=SEQ_LEN)


# --- What depends on what


@each
def test_later_bytes_change_nothing_before_them(name):
  """Though they make other patches there, at each resolution."""

  def look(ids):
    return run(name, ids)[0], mixture_cases.lengths(name, ids)

  assert causality.changes(look, SEQ_LEN) <= 1e-5


@each
def test_gradients_flow_from_the_past_and_only_from_there(name):
  """Of logits, with respect to what stands for the bytes."""
  ids = _text(3)
  causality.check_gradients(lambda at: [run(name, ids, position=at)[1]], SEQ_LEN)


@each
def test_a_document_alone_and_in_a_row_with_others(name):
  """Rows as the packer makes them: a document starts two patches with its first bytes."""
  ids, places = _text(7), [slice(0, 7), slice(8, 13), slice(14, SEQ_LEN)]
  lengths = mixture_cases.lengths(name, ids)
  starts = np.zeros((len(lengths), SEQ_LEN + 1), bool)
  for document, place in zip(range(3), places, strict=True):
    size = place.stop - place.start
    ids[3, place] = ids[document, :size]
    own = np.zeros((len(lengths), SEQ_LEN + 2), bool)
    ends = np.cumsum(lengths[:, document], axis=1)
    np.put_along_axis(own, np.pad(ends, ((0, 0), (1, 0))), True, axis=1)
    stop = min(place.stop + 1, SEQ_LEN + 1)  # an EOS follows in its last patch
    starts[:, place.start : stop] = own[:, : stop - place.start]
    if place.stop < SEQ_LEN:
      ids[3, place.stop] = EOS
  lengths[:, 3] = 0
  for resolution, row in enumerate(starts):
    found = patching.lengths_from_starts(row[None])[0]
    lengths[resolution, 3, : len(found)] = found
  logits, _ = mixture_cases.forward(name, ids, lengths)
  for document, place in zip(range(3), places, strict=True):
    want = logits[document, : place.stop - place.start]
    chex.assert_trees_all_close(logits[3, place], want, **SAME)


# --- A BLT, and slots


def test_one_resolution_is_a_blt_to_the_bit():
  fields = {field.name: getattr(TINY, field.name) for field in dataclasses.fields(TINY)}
  config = MixtureConfig(**fields, patch_sizes=(4.5,))
  params, ids = random_params(TINY), _text(4)[:2]
  lengths = mixture_cases.lengths("two", ids)[:1]
  jitted = jax.jit(MixtureBLT(config).apply)
  found = jitted({"params": params}, ids, lengths)
  np.testing.assert_array_equal(found, logits_of(TINY, params, ids, lengths[0]))
  chex.assert_trees_all_equal_shapes(init.abstract_params(MixtureBLT(config)), params)


def test_a_row_without_slots_goes_on_in_its_last_patch():
  """What comes before is as with slots for all; a later document does not count."""
  ids = _text(5)
  ids[:, 14], ids[:, 15] = EOS, BOS
  lengths = mixture_cases.lengths("two", ids)
  lengths[:, 1:] = lengths[:, :1]  # one row alone
  ids[1:] = ids[0]
  coarse = lengths[-1, 0]
  num_slots = int((np.cumsum(coarse) < 15).sum())  # those that end in the first document
  few = dataclasses.replace(CONFIGS["two"], num_patches=num_slots)
  model, given = MixtureBLT(few), (ids[:1], lengths[:, :1])
  forward = jax.jit(lambda params: model.apply({"params": params}, *given, method="forward"))
  logits, extras = forward(mixture_cases.params("two"))
  want, _ = mixture_cases.forward("two", ids, lengths)
  slotless = np.cumsum(coarse)[num_slots - 1]  # the first such byte; before it a patch closes
  chex.assert_trees_all_close(logits[0, : slotless - 1], want[0, : slotless - 1], **SAME)
  assert abs(logits[0, slotless - 1 : 14] - want[0, slotless - 1 : 14]).max(axis=-1).min() > 0.1
  np.testing.assert_array_equal(extras.loss_mask[0], np.arange(SEQ_LEN) < 15)
  assert extras.metrics["latent_patches"] == num_slots
  assert extras.metrics["slotless_inputs"] == SEQ_LEN - slotless


# --- What is refused


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(patch_sizes=()), r"patch_sizes is \(\); it must hold the bytes per patch"),
    (dict(patch_sizes=(9.0, 4.5)), r"patch_sizes is \(9.0, 4.5\); .* rising"),
    (dict(num_patches=2), "num_patches is 2; it must be >= 3, or None"),
    (dict(encoder_cross=None), "read each other by cross-attention: set encoder_cross"),
    (dict(decoder_cross=None, read_finer=True), "set decoder_cross, or leave it False"),
    (dict(boundary_weight=1.0), "leave entropy_state_dim and boundary_weight at 0"),
  ],
)
def test_configs_that_make_no_sense(changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(CONFIGS["two"], **changes)


def test_lengths_that_do_not_fit():
  ids = np.full((2, 5), 70, np.int32)
  fine, coarse = [[1, 2, 3]] * 2, [[1, 5, 0]] * 2
  model = MixtureBLT(CONFIGS["two"])
  cases = {
    "A mixture reads patches: give patch_lengths": None,
    "must be .R, B, P., got shape": np.array(fine),
    "must begin with 2, as many as patch_sizes": np.array([fine, fine, coarse]),
    "of resolution 1 in row 1 ends before byte 4, .* resolutions must nest": np.array(
      [fine, [[1, 5, 0], [1, 3, 2]]]
    ),
    "patch_lengths of row 0 sum to 5": np.array([fine, [[1, 4, 0]] * 2]),
  }
  for message, lengths in cases.items():
    with pytest.raises(ValueError, match=message):
      model.apply({"params": {}}, ids, lengths)


# --- Rules that nest


def _entropies(seed=0):
  return np.random.default_rng(seed).gamma(1.5, 0.7, (8, 40)).astype(np.float32)


@pytest.mark.parametrize("most", [None, 3])
@pytest.mark.parametrize(
  "rule",
  [
    PatchingConfig(threshold=0.5, coarser=(1.0, 2.0)),
    PatchingConfig(threshold=0.2, coarser=(0.5, 1.0), monotonic=True),
    PatchingConfig(threshold=0.5, coarser=(1.0, 2.0), threshold_add=0.2),
    PatchingConfig("static", patch_size=2, coarser=(4, 12)),
  ],
  ids=["global", "monotonic", "add", "static"],
)
def test_coarse_patches_are_several_fine_ones(rule, most):
  rule = dataclasses.replace(rule, max_patch_length=most)
  ids = np.full((8, 40), 70, np.int32)
  entropies = _entropies() if rule.scheme == "entropy" else None
  starts = patching.patch_starts(ids, rule, entropies)
  lengths = patching.nested_lengths(ids, rule, entropies)
  patching.check_nested_lengths(lengths, 40)
  chex.assert_shape(lengths, (len(starts), 8, None))
  assert most is None or lengths.max() == most
  counts = [own.sum() for own in starts]
  assert counts == sorted(counts, reverse=True) and counts[0] > counts[1]
  for own, alone in zip(starts, rule.resolutions, strict=True):
    alone = dataclasses.replace(alone, max_patch_length=None)
    wanted = patching.patch_starts(ids, alone, entropies)[0]
    assert (own[wanted]).all() and (most is not None or (own == wanted).all())
  # Levels of the finest tell all.
  for row in range(len(ids)):
    levels = patching.levels_of([own[row : row + 1] for own in starts])[None]
    size = levels.shape[1]
    found = patching.nest(lengths[0, row : row + 1, :size], levels, len(lengths))
    np.testing.assert_array_equal(found[:, 0], lengths[:, row, :size])


@pytest.mark.parametrize(
  ("rule", "message"),
  [
    (dict(coarser=(0.5,), threshold=1.0), r"coarser is \(0.5,\) above 1.0: 0.5 follows 1.0"),
    (dict(coarser=(2.0, 2.0), threshold=1.0), "2.0 follows 2.0; resolutions must rise"),
    (dict(coarser=("a",), threshold=1.0), "it must hold numbers"),
    (dict(coarser=(2.0,), threshold=1.0, cumulative=True), "the cumulative rule makes no"),
    (dict(coarser=(2.0,), threshold=None, patch_size=4), "the top-k rule makes no"),
    (dict(coarser=(2.0,), scheme="space"), "the space rule .* or leave coarser empty"),
    (dict(coarser=(6,), scheme="static", patch_size=4), "4 does not divide 6"),
  ],
)
def test_rules_that_do_not_nest(rule, message):
  with pytest.raises(ValueError, match=message):
    PatchingConfig(**rule)
