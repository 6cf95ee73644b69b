"""Patches by a BLT's own entropies: against full forwards, one or two for each byte."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forward import TINY, logits_of
from golden_cases import FLOAT32
from uncached import random_params

from blt_jax import patching, tokenizer
from blt_jax.decode.own_entropies import OwnPatchedBLT
from blt_jax.ops import losses
from blt_jax.patching import PatchingConfig

SEQ_LEN, CHUNK = 24, 5  # bytes of a row, and rows that pieces are read of
BOS, EOS, PAD = tokenizer.BOS_ID, tokenizer.EOS_ID, tokenizer.BOE_ID
AT = np.arange(SEQ_LEN)
IS_LATER = AT[:, None] < AT  # [row, position]: after the row's own position
UNROLLED = {  # compiles faster
  name: dataclasses.replace(getattr(TINY, name), unroll=True)
  for name in ("encoder", "latent", "decoder")
}
CONFIG = dataclasses.replace(TINY, **UNROLLED)
RULE = PatchingConfig(threshold=4.3, max_patch_length=6)
SLOTS = np.zeros((SEQ_LEN, SEQ_LEN + 1), np.int32)


@functools.cache
def _params():
  """Sharpened, so that entropies vary."""
  params = random_params(CONFIG)
  params["output"]["kernel"] *= 2
  return params


@functools.partial(jax.jit, static_argnums=0)
def _run(rule, params, ids):
  """Logits and extras of ids [S, S], and the entropies that make the patches."""

  def forward(model):
    return *model.forward(ids, SLOTS), model.patch(ids, SLOTS.shape[1])[1]

  return OwnPatchedBLT(CONFIG, rule=rule).apply({"params": params}, method=forward)


def _text(seed, rows=SEQ_LEN):
  """Ids [S, S] of a document in each row, `rows` of them different."""
  ids = np.random.default_rng(seed).integers(4, 260, (rows, SEQ_LEN)).astype(np.int32)
  ids[:, 0] = BOS
  return np.resize(ids, (SEQ_LEN, SEQ_LEN))


def _documents(seed=5):
  """Rows of a document each, but for some that have several, and padding."""
  ids = _text(seed)
  ids[2, 9], ids[2, 10], ids[3, 4:6], ids[4, 15], ids[4, 16:] = EOS, BOS, EOS, EOS, PAD
  return ids


# --- Byte by byte, by full forwards of the BLT


def _starts_next(rule, ids, entropies):
  """Whether a patch starts after ids [n] of a document."""
  if ids[-1] == EOS or len(ids) == 1:
    return True
  return patching.patch_lengths(ids[None], rule, entropies[None])[0, -1] == 1


def _logits_at(position, ids, starts):
  return np.asarray(logits_of(CONFIG, _params(), ids, patching.lengths_from_starts(starts)))[
    :, position
  ]


@functools.cache
def _slow(rule, seed=5):
  """Logits [B, S, V], starts [B, S + 1] and entropies [B, S] of `_documents`."""
  ids = _documents(seed)
  starts = np.zeros((SEQ_LEN, SEQ_LEN + 1), bool)
  starts[:, 0] = True
  logits = np.zeros((SEQ_LEN, SEQ_LEN, 260), np.float32)
  entropies = np.zeros((SEQ_LEN, SEQ_LEN), np.float32)
  for at in range(SEQ_LEN):
    first = _logits_at(at, ids, starts)
    entropies[:, at] = losses.entropy_nats(jnp.asarray(first))
    certain = np.zeros(SEQ_LEN, bool)
    for row in range(SEQ_LEN):
      ends = np.flatnonzero(ids[row, :at] == EOS)
      begin = ends[-1] + 1 if len(ends) else 0
      here = slice(begin, at + 1)
      found = entropies[row, here].copy()
      starts[row, at + 1] = _starts_next(rule, ids[row, here], found)
      found[-1] = -1e9
      certain[row] = _starts_next(rule, ids[row, here], found)
    logits[:, at] = _logits_at(at, ids, starts)
    second = losses.entropy_nats(jnp.asarray(logits[:, at]))
    entropies[:, at] = np.where(certain, second, entropies[:, at])
  return logits, starts, entropies


RULES = {
  "global": RULE,
  "cumulative": PatchingConfig(threshold=14.0, cumulative=True),
  "monotonic": PatchingConfig(threshold=0.05, monotonic=True),
}


@pytest.mark.parametrize("name", RULES)
def test_patches_are_those_found_byte_by_byte(name):
  rule = RULES[name]
  logits, starts, entropies = _slow(rule)
  found, extras, measured = _run(rule, _params(), _documents())
  real = _documents() != PAD
  np.testing.assert_array_equal(
    extras.patch_lengths,
    np.pad(patching.lengths_from_starts(starts), ((0, 0), (0, 99)))[:, : SEQ_LEN + 1],
  )
  assert 0.15 < starts[real[:, 0], 2:].mean() < 0.7
  chex.assert_trees_all_close(np.asarray(measured)[real], entropies[real], **FLOAT32)
  chex.assert_trees_all_close(np.asarray(found)[real], logits[real], **FLOAT32)
