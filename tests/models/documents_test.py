"""A document in a packed row is what it is alone: its patches and its logits."""

import dataclasses
import functools
import itertools
from typing import NamedTuple

import chex
import grain
import numpy as np
import pytest
from forward import TINY, logits_of, pad_lengths, stack
from golden_cases import FLOAT32
from hypothesis import given, settings
from hypothesis import strategies as st
from uncached import random_params

from blt_jax import hashing, patching, tokenizer
from blt_jax.data.packing.rows import PackRows
from blt_jax.models import transformer
from blt_jax.models.config import CrossAttentionConfig
from blt_jax.patching import PatchingConfig

SEQ_LEN, ROWS, PATCHES = 48, 8, 20  # as many rows as documents, so that one program serves both
LETTERS = tokenizer.encode("ab ", add_bos=False, add_eos=False)  # few, so that n-grams repeat
IDS = [0, tokenizer.BOS_ID, tokenizer.EOS_ID, *LETTERS]
TABLES = [hashing.NgramTable(np.array([*itertools.product(IDS, repeat=n)])) for n in (2, 3)]
DEEP = dataclasses.replace(
  TINY, encoder=stack(16, 2, window=5), latent=stack(32, 2), decoder=stack(16, 2, window=5)
)
FORMS = {
  "hashes": DEEP,
  "one read": dataclasses.replace(
    DEEP,
    encoder_cross=CrossAttentionConfig(4),
    decoder_cross=CrossAttentionConfig(4),
    pixel_ngrams=True,
    picture_size=(2, 4, 3),
  ),
  "windows": dataclasses.replace(
    TINY,
    encoder_cross=CrossAttentionConfig(4, window=2, all_layers=True),
    decoder_cross=CrossAttentionConfig(4, window=3),
  ),
  "pooled": dataclasses.replace(
    TINY, encoder_cross=None, decoder_cross=None, pooling="avg_max", hash_functions=2
  ),
  "tables": dataclasses.replace(DEEP, ngram_vocab_sizes=tuple(t.size for t in TABLES)),
}


class Piece(NamedTuple):
  """The beginning of a document in a row: as many of its ids as are inputs with a target."""

  document: int
  row: int
  start: int
  size: int


def random_documents(seed):
  """Documents of 2 to S ids with patches, as the packer takes them."""
  rng = np.random.default_rng(seed)
  for _ in range(ROWS):
    text = rng.choice(LETTERS, rng.integers(SEQ_LEN - 2))
    tokens = np.array([tokenizer.BOS_ID, *text, tokenizer.EOS_ID], np.int32)
    rule = PatchingConfig(scheme="space")
    lengths = patching.patch_lengths(tokens[None], rule, include_next=False)
    yield {"tokens": tokens, "patch_lengths": lengths[0]}


def pack(documents):
  source = grain.MapDataset.source(documents).to_iter_dataset()
  return next(iter(PackRows(source, SEQ_LEN, PATCHES, pool_size=3, batch_size=ROWS)))


def find_pieces(documents, rows):
  for row, start in zip(*np.nonzero(rows["tokens"] == tokenizer.BOS_ID), strict=True):
    mask = rows["loss_mask"][row, start:]
    size = SEQ_LEN - start if mask.all() else int(mask.argmin())
    targets = rows["targets"][row, start : start + size]
    for number, document in enumerate(documents):
      if np.array_equal(document["tokens"][1 : size + 1], targets):
        yield Piece(number, row, start, size)
        break


@functools.cache
def params_of(config):
  return random_params(config)


def run(config, tokens, lengths):
  """Logits [B, S, V] of rows."""
  ngram_ids = None
  if config.ngram_vocab_sizes:
    documents = np.asarray(transformer.document_ids(tokens, tokenizer.EOS_ID))
    ngram_ids = np.stack([table.ids(tokens, documents) for table in TABLES])
  lengths = pad_lengths(lengths, SEQ_LEN, SEQ_LEN + 1)
  return np.asarray(logits_of(config, params_of(config), tokens, lengths, ngram_ids))


def run_both(config, documents, rows):
  """Logits of documents alone, a row each, and of the rows that they were packed into."""
  tokens = [np.pad(d["tokens"], (0, SEQ_LEN - len(d["tokens"]))) for d in documents]
  lengths = np.zeros((ROWS, SEQ_LEN), np.int32)
  for row, document in zip(lengths, documents, strict=True):
    row[: len(document["patch_lengths"])] = document["patch_lengths"]
  alone = run(config, np.stack(tokens), lengths)
  return alone, run(config, rows["tokens"], rows["patch_lengths"])


def change_others(rows, piece, rng):
  """Other letters in the whole row, but for a piece and what marks documents."""
  tokens = rows["tokens"].copy()
  others = tokens[piece.row] >= tokenizer.OFFSET
  others[piece.start : piece.start + piece.size] = False
  tokens[piece.row, others] = rng.integers(tokenizer.OFFSET, 260, others.sum())
  return tokens


@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_document_in_a_row_is_what_it_is_alone(name, seed):
  config, documents = FORMS[name], list(random_documents(seed))
  rows = pack(documents)
  pieces = list(find_pieces(documents, rows))
  assert len(pieces) == ROWS
  alone, packed = run_both(config, documents, rows)
  for document, row, start, size in pieces:
    got = packed[row, start : start + size]
    chex.assert_trees_all_close(got, alone[document, :size], **FLOAT32)
  piece = pieces[seed % ROWS]
  changed = change_others(rows, piece, np.random.default_rng(seed))
  after = run(config, changed, rows["patch_lengths"])
  inside = piece.row, slice(piece.start, piece.start + piece.size)
  np.testing.assert_array_equal(after[inside], packed[inside])


@given(seed=st.integers(0, 2**32 - 1))
def test_the_patches_of_a_document_in_a_row_are_those_that_it_has_alone(seed):
  documents = list(random_documents(seed))
  rows = pack(documents)
  for document, row, start, size in find_pieces(documents, rows):
    here = np.cumsum(rows["patch_lengths"][row]) - rows["patch_lengths"][row] - start
    own = documents[document]["patch_lengths"]
    own = np.cumsum(own) - own
    np.testing.assert_array_equal(here[(here >= 0) & (here <= size)], own[own <= size])


@pytest.mark.parametrize(
  ("name", "masks"), [("hashes", "hash_document_masks"), ("windows", "cross_document_masks")]
)
def test_the_ways_of_the_reference_let_documents_mix(name, masks):
  """What conversions ask for; and the tests above would see it."""
  config = dataclasses.replace(FORMS[name], **{masks: False})
  documents = list(random_documents(0))
  rows = pack(documents)
  alone, packed = run_both(config, documents, rows)
  differences = [
    abs(packed[p.row, p.start : p.start + p.size] - alone[p.document, : p.size]).max()
    for p in find_pieces(documents, rows)
    if p.start > 0
  ]
  assert max(differences) > 0.01
