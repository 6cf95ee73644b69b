"""The end-to-end BLT: what each logit depends on, its patches, the loss of its head."""

import dataclasses
import functools

import causality
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from end_to_end_cases import (
  CONFIGS,
  SEQ_LEN,
  TABLE,
  WITH_NGRAMS,
  ngram_params,
  params,
  run,
  run_with_ngrams,
)
from forward import TINY, logits_of
from golden_cases import SAME

from blt_jax import patching, tokenizer
from blt_jax.models import own_patches
from blt_jax.models.end_to_end import EndToEndBLT

BOS, EOS, PAD = tokenizer.BOS_ID, tokenizer.EOS_ID, tokenizer.BOE_ID
each_head = pytest.mark.parametrize("head", CONFIGS)
AT = np.arange(SEQ_LEN)


_text = functools.partial(causality.text, size=SEQ_LEN)


# --- What depends on what


def _changes(forward):
  """See `causality.changes`."""

  def run(ids):
    logits, extras, *_ = forward(ids)
    return logits, extras.patch_lengths

  return causality.changes(run, SEQ_LEN)


@each_head
def test_later_bytes_change_nothing_before_them(head):
  """Though they make other patches there."""
  assert _changes(functools.partial(run, head)) <= 1e-5


def test_frequent_ngrams_know_no_later_bytes():
  ids = _text(6)
  assert _changes(run_with_ngrams) <= 1e-5
  assert (TABLE.ids(ids) > 0).mean() > 0.1
  with pytest.raises(ValueError, match="1 frequency n-gram tables, ngram_ids has 0"):
    EndToEndBLT(WITH_NGRAMS).apply({"params": ngram_params()}, ids)


def test_the_usual_decoder_rule_would_tell_of_the_next_byte(monkeypatch):
  """A backward entropy closes a patch one byte later than a forward one does."""
  find, model = own_patches.find, EndToEndBLT(CONFIGS["backward"])

  def usual(*args):
    patches = find(*args)
    return patches._replace(decoder_ids=patching.decoder_patch_ids(patches.lengths, SEQ_LEN))

  monkeypatch.setattr(own_patches, "find", usual)
  own = {"params": params("backward")}
  forward = jax.jit(lambda tokens: model.apply(own, tokens, method="forward"))
  assert _changes(forward) > 1e-2


@each_head
def test_gradients_flow_from_the_past_and_only_from_there(head):
  """With respect to embeddings: rows of tables, as every id of the row is another one."""
  ids = causality.other_ids(SEQ_LEN)

  def find(position):
    whole = np.resize(ids, (SEQ_LEN, SEQ_LEN))
    gradients = run(head, whole, position=position).gradients
    yield gradients["predictor"]["embedding"]["embedding"][ids]
    if CONFIGS[head].skip:
      yield gradients["embedder"]["bytes"]["embedding"][ids]

  causality.check_gradients(find, SEQ_LEN)


@each_head
def test_a_document_alone_and_in_a_row_with_others(head):
  ids, places = _text(7), [slice(0, 7), slice(8, 13), slice(14, 22)]
  ids[3] = PAD
  for document, place in zip(ids, places, strict=False):
    ids[3, place], ids[3, place.stop] = document[: place.stop - place.start], EOS
  logits = run(head, ids).logits
  for own, place in zip(logits, places, strict=False):
    chex.assert_trees_all_close(logits[3, place], own[: place.stop - place.start], **SAME)


# --- Patches


def _starts(entropies, threshold, is_late):
  """Where patches start in a document of one row, the next byte included: bool [S + 1]."""
  deciding = [*entropies, -np.inf] if is_late else [np.inf, *entropies]
  return np.array([t < 2 or deciding[t] > threshold for t in range(SEQ_LEN + 1)])


@each_head
def test_patches_are_those_of_the_entropies(head):
  _, extras, heads, _ = run(head, _text(6))
  log_probs = np.asarray(jax.nn.log_softmax(heads[:, :, 0 if head == "next" else 1]))
  entropies = -(np.exp(log_probs) * log_probs).sum(axis=-1)
  threshold = CONFIGS[head].threshold
  starts = np.stack([_starts(row, threshold, head == "backward") for row in entropies])
  lengths = patching.lengths_from_starts(starts)
  width = lengths.shape[1]
  np.testing.assert_array_equal(extras.patch_lengths[:, :width], lengths)
  assert not extras.patch_lengths[:, width:].any()
  assert extras.metrics["patches"] == starts[:, :-1].sum() == extras.metrics["boundaries"]


@each_head
def test_a_threshold_may_be_given(head):
  counts = [run(head, _text(6), threshold=t).extras.metrics["patches"] for t in (-1.0, 6.0)]
  assert counts == [SEQ_LEN * SEQ_LEN, SEQ_LEN * 2]


def test_without_its_bridge_it_is_a_blt_of_these_patches():
  own = params("next")
  assert sorted(own["predictor"]) == ["embedding", "norm", "output", "transformer"]  # a ByteLM
  bridge = {"kernel": jnp.zeros_like(own["bridge"]["kernel"])}
  logits, extras, *_ = run("next", _text(6), own | {"bridge": bridge})
  without = {name: own[name] for name in own if name not in ("bridge", "predictor")}
  want = logits_of(TINY, without, _text(6), extras.patch_lengths)
  chex.assert_trees_all_close(logits, want, **SAME)


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("num_slots", [3, 6, SEQ_LEN + 1])
def test_what_the_decoder_reads_is_closed_and_of_its_document(num_slots, is_late):
  """Whatever starts patches, and however few slots there are."""
  rng = np.random.default_rng(0)
  ids = np.where(rng.random((200, SEQ_LEN)) < 0.1, EOS, 70).astype(np.int32)
  fires = rng.random(ids.shape) < 0.4
  find = jax.jit(functools.partial(own_patches.find, num_slots=num_slots, is_late=is_late))
  found = jax.device_get(find(ids, fires))
  assert (found.lengths.sum(axis=1) == SEQ_LEN + 1).all() and found.num_slots == num_slots
  ends = np.cumsum(found.lengths, axis=1)  # the byte after each patch
  read = np.take_along_axis(ends, found.decoder_ids, axis=1) - 1  # its last byte
  assert (read <= AT).all()
  document = np.cumsum(ids == EOS, axis=1) - (ids == EOS)
  of_read = np.take_along_axis(document, read, axis=1)
  assert (of_read == document)[found.has_slots].all()
  assert found.has_slots.all() == (num_slots > SEQ_LEN)

  # What comes later changes nothing: of the same row, bytes and firing after a position.
  later = rng.integers(0, SEQ_LEN, (200, 1)) < AT
  other = find(np.where(later, ids[::-1], ids), np.where(later, fires[::-1], fires))
  for name in ("ids", "decoder_ids", "has_slots"):
    same = np.asarray(getattr(other, name)) == getattr(found, name)
    assert same[~later].all(), name


def test_a_row_without_slots_goes_on_in_its_last_patch():
  ids = _text(8)[:2]
  ids[1, 2], ids[1, 3], ids[1, 10], ids[1, 11] = EOS, BOS, EOS, BOS
  ids[0, 20:] = PAD

  @jax.jit
  def find(ids):
    patches = own_patches.find(ids, jnp.ones(ids.shape, bool), 5, False)
    return patches, own_patches.counts(ids, patches)

  patches, found = find(ids)
  assert patches.lengths.tolist() == [[1, 1, 1, 1, SEQ_LEN - 3]] * 2
  assert {name: float(value) for name, value in found.items()} == {
    "patches": 10,
    "one_byte_patches": 8,
    "boundaries": 20 + 24,
    "slotless_inputs": 15 + 19,
    "patch_slots": 10,
  }
  # The second document of row 1 has two slots, its third one has none.
  np.testing.assert_array_equal(patches.has_slots, [[True] * 24, [True] * 11 + [False] * 13])


# --- The head, and the threshold


@each_head
def test_the_loss_of_a_head_counts_what_is_in_its_document(head):
  ids = _text(9, rows=1)
  ids[:, 6], ids[:, 7], ids[:, 20:] = EOS, BOS, PAD
  _, extras, heads, _ = run(head, ids)
  log_probs = np.asarray(jax.nn.log_softmax(heads))[0]  # [S, n, V]
  document, nats = np.repeat([0, 1], [7, 13]), []
  for t in range(20):
    for i, aim in enumerate([t + 1] if head == "next" else [t - 2, t - 1, t]):
      if 0 <= aim < 20 and document[aim] == document[t]:
        nats.append(-log_probs[t, i, ids[0, aim]])
  assert extras.metrics["head_targets"] == SEQ_LEN * len(nats)
  want = SEQ_LEN * np.sum(nats)
  np.testing.assert_allclose(extras.metrics["head_nats"], want, rtol=1e-5)
  np.testing.assert_allclose(extras.losses["head"], want / heads.shape[2], rtol=1e-5)


def test_the_threshold_follows_the_patches_and_comes_to_rest():
  config = dataclasses.replace(CONFIGS["next"], patch_size=4.0, threshold_rate=0.1)
  model = EndToEndBLT(config)
  scalars = model.start_scalars()
  assert {name: float(value) for name, value in scalars.items()} == {
    "threshold": np.float32(4.48)
  }

  def moved(boundaries, remaining):
    metrics = {"boundaries": jnp.float32(boundaries), "inputs": jnp.float32(400)}
    found = model.move_scalars(scalars, metrics, jnp.float32(remaining))
    return float(found["threshold"] - scalars["threshold"])

  cases = [(100, 1), (150, 1), (50, 1), (150, 0.5), (400, 1), (150, 0)]
  want = [0, 0.05, -0.05, 0.025, 0.1, 0]
  np.testing.assert_allclose([moved(*case) for case in cases], want, atol=1e-6)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(head="both"), "Unknown head 'both'; choose one of"),
    (dict(backward_bytes=1), "backward_bytes is 1; it must be >= 2"),
    (dict(num_patches=2), "num_patches is 2; it must be >= 3, or None"),
    (dict(patch_size=1.0), "patch_size is 1.0; it must be > 1"),
    (dict(head_weight=-1.0), "head_weight -1.0 and threshold_rate 0.05 must be >= 0"),
    (
      dict(skip=False),
      r"Without skip .* set hash_sizes=\(\), pixel_ngrams=False and tie_embeddings=False",
    ),
    (
      dict(skip=False, hash_sizes=(), ngram_vocab_sizes=(9,)),
      "Without skip .* leave ngram_vocab_sizes",
    ),
  ],
)
def test_configs_that_make_no_sense(changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(CONFIGS["next"], **changes)
