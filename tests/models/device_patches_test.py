"""Patches of entropies on the device, and the entropy model's states as inputs of a BLT."""

import dataclasses
import functools

import causality
import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forward import TINY, logits_of, stack
from uncached import random_params

from blt_jax import patching, tokenizer
from blt_jax.data.packing.rows import PackRows
from blt_jax.entropy.neural import EntropyScorer
from blt_jax.models import own_patches
from blt_jax.models.blt import BLT
from blt_jax.models.config import ByteLMConfig
from blt_jax.models.device_patches import DevicePatchedBLT, count_cut, measure
from blt_jax.patching import PatchingConfig

SEQ_LEN, WIDTH = 24, 16  # bytes of a row, and rows; of the entropy model's states
BOS, EOS = tokenizer.BOS_ID, tokenizer.EOS_ID
RULE = PatchingConfig(threshold=3.0)
ENTROPY = ByteLMConfig(stack(16, 1, window=5))
BLT_CONFIG = dataclasses.replace(
  TINY, entropy_state_dim=WIDTH,
  **{name: dataclasses.replace(getattr(TINY, name), unroll=True)  # compiles faster
     for name in ("encoder", "latent", "decoder")},
)  # fmt: skip


@functools.cache
def _entropy_params():
  found = random_params(ENTROPY)
  found["output"]["kernel"] *= 3  # so that half of the entropies are above the threshold
  return found


@functools.cache
def _params():
  return random_params(BLT_CONFIG)


def _run(params, ids, slots):
  """Logits and extras of ids [S, S], and states of the entropy model."""
  return _compiled(params, _entropy_params(), ids, slots)


@jax.jit
def _compiled(params, given, ids, slots):
  model = DevicePatchedBLT(BLT_CONFIG, ENTROPY, RULE)
  named = dict(entropy_params=given, method="forward")
  states = measure(ENTROPY, given, ids)[1]
  return *model.apply({"params": params}, ids, slots, **named), states


_text = functools.partial(causality.text, size=SEQ_LEN)


ALL_SLOTS = np.zeros((SEQ_LEN, SEQ_LEN + 1), np.int32)


# --- What depends on what


def test_later_bytes_change_nothing_before_them():
  """Though they make other patches there, and other states."""

  def run(ids):
    logits, extras, _ = _run(_params(), ids, ALL_SLOTS)
    return logits, extras.patch_lengths

  assert causality.changes(run, SEQ_LEN) <= 1e-5


def test_gradients_flow_from_the_past_and_only_from_there():
  """With respect to embeddings of bytes and to states, of row 0."""
  ids = np.resize(causality.other_ids(SEQ_LEN), (SEQ_LEN, SEQ_LEN))
  _, extras, states = _run(_params(), ids, ALL_SLOTS)

  @jax.jit
  @functools.partial(jax.grad, argnums=(0, 1))
  def gradients_of(params, states, position):
    arguments = ids[:1], extras.patch_lengths[:1], None, states
    logits = BLT(BLT_CONFIG).apply({"params": params}, *arguments)
    return (logits[0, position] * jnp.cos(jnp.arange(260))).sum()

  def find(position):
    params, to_states = gradients_of(_params(), states[:1], position)
    return params["embedder"]["bytes"]["embedding"][ids[0]], to_states[0]

  causality.check_gradients(find, SEQ_LEN)


# --- Equal to a BLT


def test_states_change_nothing_while_their_matrices_are_zero():
  """To the bit; and the patches are those of the entropies."""
  ids, names = _text(6), ("states_to_encoder", "states_to_decoder")
  zeros = {name: jax.tree.map(jnp.zeros_like, _params()[name]) for name in names}
  logits, extras, _ = _run(_params() | zeros, ids, ALL_SLOTS)
  without = {name: value for name, value in _params().items() if name not in names}
  plain = dataclasses.replace(BLT_CONFIG, entropy_state_dim=0)
  want = logits_of(plain, without, ids, extras.patch_lengths)
  np.testing.assert_array_equal(logits, want)
  assert abs(_run(_params(), ids, ALL_SLOTS)[0] - want).max() > 1e-2


def test_a_model_with_states_wants_them():
  ids, lengths = jnp.zeros((1, 4), jnp.int32), jnp.array([[1, 4]])
  with pytest.raises(
    ValueError, match="takes entropy_states of width 16 and got 0; give those"
  ):
    BLT(BLT_CONFIG).apply({"params": _params()}, ids, lengths)
  with pytest.raises(ValueError, match="entropy_state_dim is -1; it must be >= 0"):
    dataclasses.replace(TINY, entropy_state_dim=-1)


# --- Boundaries

RULES = {
  "global": {},
  "cumulative": {"cumulative": True, "threshold": 9.0},
  "monotonic": {"monotonic": True, "threshold": 0.3},
  "global and add": {"threshold_add": 0.2, "threshold": 2.5},
  "long patches are cut": {"threshold": 4.0, "max_patch_length": 3},
  "contexts begin at newlines": {"reset_at_newline": True},
}


@functools.cache
def _documents():
  """Ids of documents, each of which begins like no other, and with bytes that come often."""
  rng, sizes = np.random.default_rng(0), [*range(2, 40), 100, 100, 100]
  letters = np.array([*range(30), ord("\n")], np.uint8)
  texts = [bytes([i]) + rng.choice(letters, n).tobytes() for i, n in enumerate(sizes)]
  return [tokenizer.encode(text) for text in texts]


@functools.cache
def _rows():
  """Ids [R, S] of these documents, packed; some are cut."""
  documents = [{"tokens": t, "patch_lengths": np.ones(len(t), np.int32)} for t in _documents()]
  options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
  source = grain.MapDataset.source(documents).to_iter_dataset(options)
  return np.stack([row["tokens"] for row in PackRows(source, 32, 33, 8)])


@functools.cache
def _entropies(reset):
  """Of the host, for each document; and of the device, [R, S]."""
  scorer = EntropyScorer(ENTROPY, _entropy_params(), reset)
  on_device = jax.jit(lambda params, ids: measure(ENTROPY, params, ids, reset)[0])
  return [scorer(ids) for ids in _documents()], on_device(_entropy_params(), _rows())


def _pieces(row):
  """First and last position, plus one, of each piece of a document in a row."""
  ends = [*(np.flatnonzero(row == EOS) + 1), len(row)]
  pieces = zip([0, *ends], ends, strict=False)
  return [(start, end) for start, end in pieces if end > start and row[start]]


@pytest.mark.parametrize("rule", RULES)
def test_boundaries_are_the_hosts_where_a_row_has_the_document_from_its_beginning(rule):
  config = dataclasses.replace(RULE, **RULES[rule])
  host, on_device = _entropies(config.reset_at_newline)
  find = jax.jit(functools.partial(own_patches.of_entropies, rule=config, num_slots=33))
  found = jax.device_get(find(_rows(), on_device))
  num_compared = num_starts = 0
  for row, starts in zip(_rows(), found.starts, strict=True):
    for first, end in _pieces(row):
      if row[first] != BOS or end - first < 2:
        continue
      number = row[first + 1] - tokenizer.OFFSET
      ids, entropies = _documents()[number][None], host[number][None]
      lengths = patching.patch_lengths(ids, config, entropies, include_next=False)
      want = np.zeros(ids.size, bool)
      want[(np.cumsum(lengths) - lengths)[lengths > 0]] = True
      size = min(end - first, ids.size)
      np.testing.assert_array_equal(starts[first : first + size], want[:size])
      num_compared, num_starts = num_compared + size, num_starts + want[:size].sum()
  assert num_compared > 600 and 0.2 < num_starts / num_compared < 0.8


def test_bytes_of_documents_that_began_in_another_row_are_counted():
  pieces = [(row, *piece) for row in _rows() for piece in _pieces(row)]
  want = sum(end - first for row, first, end in pieces if row[first] != BOS)
  assert 100 < want < _rows().size / 2
  assert jax.jit(count_cut)(_rows()) == want


def test_a_row_without_slots_goes_on_in_its_last_patch():
  """What it has no slots for is counted, and not learned where it cannot be predicted."""
  ids = _text(8)
  ids[:, 12], ids[:, 13], ids[0, 12:] = EOS, BOS, 0
  _, extras, _ = _run(_params(), ids, ALL_SLOTS[:, :5])
  assert extras.patch_lengths.shape == (SEQ_LEN, 5)
  assert (extras.patch_lengths.sum(axis=1) == SEQ_LEN + 1).all()
  assert extras.metrics["patch_slots"] == 5 * SEQ_LEN
  assert 0 < extras.metrics["slotless_inputs"] < (ids > 0).sum()
  assert extras.loss_mask[:, :12].all() and not extras.loss_mask[1:, 13:].all()
