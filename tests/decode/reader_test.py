"""Reading on from caches against the full forward pass."""

import dataclasses
import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forward import TINY, stack
from golden_cases import FLOAT32
from read_pieces import read_in_pieces
from uncached import LENGTH, Uncached, random_blt, random_params, random_text

from blt_jax import tokenizer, train_table
from blt_jax.decode.blt import BLTReader
from blt_jax.decode.byte_lm import ByteLMReader
from blt_jax.decode.language_model import from_blt, from_byte_lm
from blt_jax.decode.table import TableSource
from blt_jax.entropy.table import TableModel, save_table
from blt_jax.hashing import NgramTable
from blt_jax.models.blt import BLT
from blt_jax.models.byte_lm import ByteLM
from blt_jax.models.config import ByteLMConfig, CrossAttentionConfig
from blt_jax.ops import decode_layers
from blt_jax.patching import PatchingConfig

CHUNK, ROWS = 3, 3
VARIANTS = {
  "meta": (TINY, {}),
  "refined": (
    dataclasses.replace(
      TINY, encoder=stack(16, 2, window=5), pixel_ngrams=True, picture_size=(3, 4, 2)
    ),
    {},
  ),
  "hf": (
    dataclasses.replace(
      TINY, encoder=stack(16, 2, window=5, num_kv_heads=2), repool=True, document_masks=False,
      latent_document_masks=False, hash_document_masks=False,
      decoder_cross=CrossAttentionConfig(4, 2),
    ),
    {"max_patch_length": 2},
  ),
  "windows": (
    dataclasses.replace(
      TINY, encoder_cross=CrossAttentionConfig(4, window=2, all_layers=True), pooling="min",
      decoder_cross=CrossAttentionConfig(4, window=3), vectors_per_patch=4, hash_functions=2,
    ),
    {"threshold": 2.5},
  ),
  "windows across": (
    dataclasses.replace(
      TINY, encoder_cross=CrossAttentionConfig(4, window=2), latent_document_masks=False,
      decoder_cross=CrossAttentionConfig(4, window=3), cross_document_masks=False,
    ),
    {},
  ),
  "pooled": (
    dataclasses.replace(
      TINY, encoder_cross=None, decoder_cross=None, pooling="avg_max", hash_sizes=(),
      tie_embeddings=True, encoder=stack(16, 1, window=500),
    ),
    {"threshold": 9.0},  # one patch, longer than what is read at once
  ),
}  # fmt: skip
LETTERS = (tokenizer.EOS_ID, *range(9, 60))
TABLES = tuple(
  NgramTable(np.random.default_rng(n).permutation([*itertools.product(LETTERS, repeat=n)])[:99])
  for n in (2, 3)
)


_read_all = functools.partial(read_in_pieces, chunk=CHUNK, room=LENGTH)


@pytest.mark.parametrize("name", VARIANTS)
def test_blt_reads_as_the_full_forward(name):
  config, rule = VARIANTS[name]
  uncached = random_blt(config, **rule)
  text = random_text(np.random.default_rng(1), ROWS, 50)
  model = uncached.cached()
  logits, cache = _read_all(model.reader, model.weights, text)
  cache = jax.device_get(cache)
  chex.assert_trees_all_close(logits, uncached.logits(text), **FLOAT32)
  for row, lengths in enumerate(uncached.lengths(text)):
    starts = np.cumsum(lengths) - lengths
    number = int(cache.cursor.patch[row]) + 1
    np.testing.assert_array_equal(cache.starts[row, :number], starts[:number])
  chex.assert_trees_all_close(
    cache.entropies[:, : text.shape[1]], uncached.entropies(text), **FLOAT32
  )


@pytest.mark.parametrize("hash_sizes", [(), (3, 4)])
@pytest.mark.parametrize("masks", [True, False])
def test_frequency_tables_are_read_as_in_the_full_forward(hash_sizes, masks):
  config = dataclasses.replace(
    TINY, hash_sizes=hash_sizes, hash_document_masks=masks,
    ngram_vocab_sizes=tuple(table.size for table in TABLES),
  )  # fmt: skip
  uncached = dataclasses.replace(random_blt(config), tables=TABLES)
  text = random_text(np.random.default_rng(1), ROWS, 50) % 60
  text[:, 0] = tokenizer.BOS_ID
  model = uncached.cached()
  logits, _ = _read_all(model.reader, model.weights, text)
  chex.assert_trees_all_close(logits, uncached.logits(text), **FLOAT32)
  with pytest.raises(ValueError, match=r"tables of \(103, 103\) rows; pass them .*got \(\)"):
    from_blt(
      BLT(config),
      uncached.params,
      uncached.patching,
      (uncached.entropy_config, uncached.entropy_params),
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_a_byte_of_one_row_beside_its_entropy(name, monkeypatch):
  _read_ahead(monkeypatch)
  config, rule = VARIANTS[name]
  uncached = random_blt(config, **rule)
  text = random_text(np.random.default_rng(4), 1, 50)
  reader, weights = uncached.cached().reader, uncached.cached().weights
  cache, got = reader.init(1, LENGTH, 1), []
  read = jax.jit(reader.read)
  for token in text[0]:
    wrong = jnp.full((1, 1), (token + 7) % 260)
    cache = read(weights, cache, wrong, jnp.ones(1, int))[1].commit(jnp.zeros(1, int))
    logits, pending = read(weights, cache, jnp.full((1, 1), token), jnp.ones(1, int))
    cache = pending.commit(jnp.ones(1, int))
    got.append(logits[:, 0])
  chex.assert_trees_all_close(np.stack(got, axis=1), uncached.logits(text), **FLOAT32)
  lengths = uncached.lengths(text)[0]
  starts = (np.cumsum(lengths) - lengths)[: int(cache.cursor.patch[0]) + 1]
  np.testing.assert_array_equal(cache.starts[0, : len(starts)], starts)


def _read_ahead(monkeypatch):
  """As on a GPU: decoded as if no patch closed, and again where one did."""
  monkeypatch.setattr(BLTReader, "_reads_ahead", lambda _, tokens: tokens.shape[1] == 1)
  monkeypatch.setattr(decode_layers, "overlap", lambda first, second: (first(), second()))


@pytest.mark.parametrize("is_ahead", [False, True])
def test_rows_that_close_a_patch_wait_for_others(is_ahead, monkeypatch):
  if is_ahead:
    _read_ahead(monkeypatch)
  uncached = random_blt(TINY)
  text = random_text(np.random.default_rng(5), ROWS, 50)
  reader, weights = uncached.cached().reader, uncached.cached().weights
  cache, position = reader.init(ROWS, LENGTH, 1), np.zeros(ROWS, int)
  logits, waited = np.zeros((*text.shape, 260), np.float32), 0
  read = jax.jit(reader.read_byte)
  for i in range(200):
    real = position < text.shape[1]
    tokens = text[np.arange(ROWS), np.minimum(position, text.shape[1] - 1)][:, None]
    new, pending, count = read(weights, cache, tokens, real.astype(int), i % 8 < 7)
    before, after = np.asarray(pending.trail.patch).T
    waits = real & (np.asarray(count) == 0)
    closes = real & (after > before)
    must = i % 8 < 7 and 3 * closes.sum() < 2 * real.sum()
    np.testing.assert_array_equal(waits, closes & must)  # all that close, or none
    cache = pending.commit(count)
    np.testing.assert_array_equal(waits, cache.waits)
    waited += waits.sum()
    for row in np.flatnonzero(count):
      logits[row, position[row]] = new[row, 0]
    position = position + np.asarray(count)
  assert (position == text.shape[1]).all() and waited > 5
  chex.assert_trees_all_close(logits, uncached.logits(text), **FLOAT32)


def test_the_rules_of_the_cases_differ():
  text = random_text(np.random.default_rng(1), ROWS, 50)
  counts = [
    (random_blt(config, **rule).lengths(text) > 0).sum(axis=1).mean()
    for config, rule in VARIANTS.values()
  ]
  assert counts[-1] == 2 and 5 < counts[0] < 45 and counts[2] > counts[0]


def test_context_begins_anew_after_newlines():
  """As if each line were a text of its own; BOS is seen from the first line only."""
  config = ByteLMConfig(stack(16, 1, window=8), document_masks=False)
  params = random_params(config)
  weights = from_byte_lm(ByteLM(config), params).weights
  text = random_text(np.random.default_rng(2), ROWS, 40)
  text[text == tokenizer.NEWLINE_ID] += 1
  text[:, [9, 10, 25]] = tokenizer.NEWLINE_ID
  logits, _ = _read_all(ByteLMReader(config, "float32", True), weights, text)
  model = jax.jit(ByteLM(config).apply)
  for line in (slice(0, 10), slice(10, 11), slice(11, 26), slice(26, 40)):
    alone = np.zeros((ROWS, 20), np.int32)
    alone[:, : line.stop - line.start] = text[:, line]
    want = model({"params": params}, alone)[:, : line.stop - line.start]
    chex.assert_trees_all_close(logits[:, line], want, **FLOAT32)


@pytest.mark.parametrize("reset", [False, True])
def test_entropies_from_a_table(reset, tmp_path):
  documents = [b"the cat sat on the mat\n" * 3, b"a cat is a cat\nthe end"]
  tables, info = train_table.train(documents, [], (1, 2, 5), 1 << 10, reset)
  save_table(tmp_path / "table", tables, info)
  table = TableModel(tmp_path / "table")
  source, weights = TableSource(table), table.jax_tables()
  text = np.stack([tokenizer.encode(d[:20], add_eos=False) for d in (documents + [b"x" * 20])])
  want = np.stack([table(row) for row in text])
  cache, got = source.init(ROWS, LENGTH, CHUNK), []
  for start in range(0, text.shape[1], CHUNK):
    piece = jnp.asarray(text[:, start : start + CHUNK])
    _, _, pending = source.read(weights, cache, piece[:, ::-1], jnp.full(ROWS, CHUNK))
    cache = pending.commit(jnp.zeros(ROWS, jnp.int32))
    entropies, _, pending = source.read(weights, cache, piece, jnp.full(ROWS, CHUNK))
    cache = pending.commit(jnp.full(ROWS, piece.shape[1]))
    got.append(entropies)
  np.testing.assert_array_equal(np.concatenate(got, axis=1), want)


def test_rules_without_entropies():
  uncached = random_blt(TINY)
  rule = PatchingConfig(scheme="static", patch_size=3.5)
  uncached = dataclasses.replace(uncached, patching=rule)
  model = uncached.cached()
  text = random_text(np.random.default_rng(3), ROWS, 50)
  logits, _ = _read_all(model.reader, model.weights, text)
  chex.assert_trees_all_close(logits, uncached.logits(text), **FLOAT32)
  assert isinstance(uncached, Uncached) and model.reader.source is None
