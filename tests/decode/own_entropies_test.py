"""Patches by a BLT's own entropies: against full forwards, one or two for each byte."""

import dataclasses
import functools

import causality
import chex
import jax
import numpy as np
import pytest
from forward import TINY, logits_of, pad_lengths
from golden_cases import FLOAT32
from read_pieces import read_in_pieces
from uncached import random_params

from blt_jax import kinds, patching, tokenizer
from blt_jax.decode.language_model import from_blt
from blt_jax.decode.own_entropies import OwnPatchedBLT, check
from blt_jax.models.blt import BLT
from blt_jax.ops import losses
from blt_jax.patching import PatchingConfig

SEQ_LEN, CHUNK = 24, 5  # bytes of a row, and rows that pieces are read of
BOS, EOS, PAD = tokenizer.BOS_ID, tokenizer.EOS_ID, tokenizer.BOE_ID
UNROLLED = {  # compiles faster
  name: dataclasses.replace(getattr(TINY, name), unroll=True)
  for name in ("encoder", "latent", "decoder")
}
CONFIG = dataclasses.replace(TINY, **UNROLLED)
RULE = PatchingConfig(threshold=2.2, max_patch_length=6)
SLOTS = np.zeros((SEQ_LEN, SEQ_LEN + 1), np.int32)


@functools.cache
def _params():
  """Sharpened, so that entropies vary."""
  params = random_params(CONFIG)
  params["output"]["kernel"] *= 4
  return params


@functools.partial(jax.jit, static_argnums=0)
def _run(rule, params, ids):
  """Logits and extras of ids [S, S]."""
  model = OwnPatchedBLT(CONFIG, rule=rule)
  return model.apply({"params": params}, ids, SLOTS, method="forward")


_text = functools.partial(causality.text, size=SEQ_LEN)


def _documents():
  """Rows of a document each, but for some that have several, and padding."""
  ids = _text(5)
  ids[2, 9], ids[2, 10], ids[3, 4:6], ids[4, 15], ids[4, 16:] = EOS, BOS, EOS, EOS, PAD
  return ids


# --- Byte by byte, by full forwards of the BLT


def _starts_next(rule, ids, entropies):
  """Whether a patch starts after ids [n] of a document."""
  if ids[-1] == EOS or len(ids) == 1:
    return True
  return patching.patch_lengths(ids[None], rule, entropies[None])[0, -1] == 1


def _predict(at, ids, starts):
  """Logits [B, V] at a place."""
  lengths = pad_lengths(patching.lengths_from_starts(starts), SEQ_LEN, SEQ_LEN + 2)
  return logits_of(CONFIG, _params(), ids, lengths[:, : SEQ_LEN + 1])[:, at]


@functools.cache
def _slow(rule):
  """Logits [B, S, V], starts [B, S + 1] and entropies [B, S] of `_documents`."""
  ids = _documents()
  starts = np.zeros((SEQ_LEN, SEQ_LEN + 1), bool)
  starts[:, 0] = True
  logits = np.zeros((SEQ_LEN, SEQ_LEN, 260), np.float32)
  entropies = np.zeros((SEQ_LEN, SEQ_LEN), np.float32)
  for at in range(SEQ_LEN):
    # Predicted as if no patch ended here: bytes to come are in the same patch.
    entropies[:, at] = losses.entropy_nats(_predict(at, ids, starts))
    certain = np.zeros(SEQ_LEN, bool)
    for row in range(SEQ_LEN):
      ends = np.flatnonzero(ids[row, :at] == EOS)
      begin = ends[-1] + 1 if len(ends) else 0
      here = slice(begin, at + 1)
      found = entropies[row, here].copy()
      starts[row, at + 1] = _starts_next(rule, ids[row, here], found)
      found[-1] = -1e9
      certain[row] = _starts_next(rule, ids[row, here], found)
    logits[:, at] = second = _predict(at, ids, starts)
    entropies[:, at] = np.where(certain, losses.entropy_nats(second), entropies[:, at])
  return logits, starts, entropies


RULES = {"global": RULE, "cumulative": PatchingConfig(threshold=5.0, cumulative=True)}


@pytest.mark.parametrize("name", RULES)
def test_patches_are_those_found_byte_by_byte(name):
  logits, starts, entropies = _slow(RULES[name])
  found, extras = _run(RULES[name], _params(), _documents())
  real = _documents() != PAD
  lengths = patching.lengths_from_starts(starts)
  np.testing.assert_array_equal(extras.patch_lengths[:, : lengths.shape[1]], lengths)
  assert 0.15 < starts[:, :-1][real].mean() < 0.7
  chex.assert_trees_all_close(np.asarray(extras.entropies)[real], entropies[real], **FLOAT32)
  chex.assert_trees_all_close(np.asarray(found)[real], logits[real], **FLOAT32)


def test_reads_as_the_full_forward():
  """Random pieces of rows of documents, some followed by bytes that are taken back."""
  text, (want, starts, entropies) = _documents(), _slow(RULE)
  model = from_blt(BLT(CONFIG), _params(), RULE, patched_by="own")
  rows = 5
  got, cache = read_in_pieces(model.reader, model.weights, text[:rows], CHUNK, SEQ_LEN)
  chex.assert_trees_all_close(got, want[:rows], **FLOAT32)
  begun, measured = model.reader.patches(cache)
  np.testing.assert_array_equal(begun, starts[:rows, :-1])
  chex.assert_trees_all_close(np.asarray(measured), entropies[:rows], **FLOAT32)
  assert model.reader.drafters == ()


# --- Causality


def test_later_bytes_change_nothing_before_them():
  """Though they make other patches there."""

  def run(ids):
    logits, extras = _run(RULE, _params(), ids)
    return logits, extras.patch_lengths

  assert causality.changes(run, SEQ_LEN) <= 1e-5


def test_gradients_flow_from_the_past_and_only_from_there():
  """With respect to embeddings: rows of tables, as every id of the row is another one."""
  ids, model = causality.other_ids(SEQ_LEN), OwnPatchedBLT(CONFIG, rule=RULE)
  gradients_of = causality.gradients_of(model, _params(), ids, SLOTS[:1])

  def find(position):
    yield gradients_of(position)["embedder"]["bytes"]["embedding"][ids]

  causality.check_gradients(find, SEQ_LEN)


# --- Bad input


@pytest.mark.parametrize(
  ("rule", "message"),
  [
    (PatchingConfig(threshold=None, patch_size=4), "need a threshold in nats, .* --threshold"),
    (PatchingConfig(scheme="space"), "go with the entropy scheme, and this is 'space'"),
    (PatchingConfig(reset_at_newline=True), "reset_at_newline=True, and its own .* an entropy"),
  ],
)
def test_rules_that_own_entropies_cannot_follow(rule, message):
  with pytest.raises(ValueError, match=message):
    check(rule)


def test_models_that_need_an_entropy_model_cannot_go_without():
  assert kinds.own_patched(CONFIG) is OwnPatchedBLT
  with pytest.raises(ValueError, match="reads its states"):
    kinds.own_patched(dataclasses.replace(CONFIG, entropy_state_dim=8))
  with pytest.raises(ValueError, match="own is of a blt, .* model is a megabyte"):
    kinds.own_patched(kinds.KINDS["megabyte"].tiny())
