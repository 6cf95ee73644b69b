"""Ids of pieces stand for the very bytes of a text."""

import pickle

import grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blt_jax import config, tokenizer
from blt_jax.data import pipeline
from blt_jax.data.piece_vocabulary import PieceVocabulary
from blt_jax.data.reading.documents import Document
from blt_jax.data.transforms import PatchDocument
from blt_jax.runs import patcher

sentencepiece = pytest.importorskip("sentencepiece", reason="BPE pieces are an extra")
from tiny_pieces import LEARNED, SIZE, TEXTS, write_tokenizer  # noqa: E402


@pytest.fixture(scope="module", name="path")
def _path(tmp_path_factory):
  return write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "bpe.model")


@pytest.fixture(scope="module", name="pieces")
def _pieces(path):
  return PieceVocabulary(path)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_the_bytes_of_ids_are_the_text(pieces, text):
  ids = pieces(text)
  assert (ids[0], ids[-1], ids.dtype) == (tokenizer.BOS_ID, tokenizer.EOS_ID, np.uint16)
  assert pieces.decode_bytes(ids) == text
  assert pieces.sizes[ids].sum() == len(text)
  np.testing.assert_array_equal(pieces.encode(text), ids[1:-1])


@settings(max_examples=300)
@given(st.one_of(st.binary(max_size=20), st.text(max_size=20).map(str.encode),
                 st.text(" ▁\n\0ab<0x41>text", max_size=20).map(str.encode)))  # fmt: skip
def test_whatever_the_text_is(pieces, text):
  ids = pieces.encode(text)
  assert pieces.decode_bytes(ids) == text
  assert ids.min(initial=4) >= tokenizer.OFFSET and ids.max(initial=4) < pieces.size


def test_ids_are_those_of_sentencepiece_where_text_is_plain(path, pieces):
  """A second opinion, and the reason why a checkpoint can be read by other programs."""
  model = sentencepiece.SentencePieceProcessor(model_file=str(path))
  for name in ("german", "russian", "code", "leading spaces"):
    text = TEXTS[name].decode()
    assert pieces.encode(text.encode()).tolist() == model.encode(text)
    assert model.decode(pieces.encode(text.encode()).tolist()) == text
  assert pieces.size == model.vocab_size() == SIZE


def test_ids_of_bytes_are_those_of_the_byte_models(pieces):
  raw = b"\xff\x80\xfe"
  np.testing.assert_array_equal(pieces.encode(raw), tokenizer.encode(raw)[1:-1])
  assert [pieces.decode_bytes([i + 4]) for i in range(256)] == [bytes([i]) for i in range(256)]
  assert pieces.sizes[:4].tolist() == [0] * 4
  assert any(pieces.decode_bytes([i]) == b" the" for i in range(260, SIZE))


def test_ids_that_begin_with_bytes(pieces):
  ids = np.flatnonzero(pieces.starting_with(b" t"))
  assert {pieces.decode_bytes([i])[:2] for i in ids} == {b" t"} and len(ids) > 1


def test_other_processes_get_the_path(pieces):
  copy = pickle.loads(pickle.dumps(pieces))
  assert copy.encode(b"the text").tolist() == pieces.encode(b"the text").tolist()


def test_a_tokenizer_of_another_order_of_ids(tmp_path):
  """As that of Llama 2: unknown, BOS, EOS, bytes, pieces; the ids here are ours."""
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(b"".join(LEARNED).decode().split("\n")), vocab_size=330,
    model_prefix=str(tmp_path / "m"), model_type="bpe", byte_fallback=True, minloglevel=2,
    normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=False,
  )  # fmt: skip
  other = PieceVocabulary(tmp_path / "m.model")
  assert other.size == 331  # without padding of its own
  for text in TEXTS.values():
    assert other.decode_bytes(other.encode(text)) == text
  np.testing.assert_array_equal(other.encode(b"\xff"), [255 + 4])


@pytest.mark.parametrize(
  ("changes", "error"),
  [
    ({"add_dummy_prefix": True}, "are not the text itself"),
    ({"remove_extra_whitespaces": True}, "are not the text itself"),
    ({"byte_fallback": False}, "has pieces for 0 of 256 bytes"),
  ],
)
def test_tokenizers_that_cannot_write_every_text_are_refused(changes, error, tmp_path):
  options = {"byte_fallback": True, "remove_extra_whitespaces": False,
             "add_dummy_prefix": False} | changes  # fmt: skip
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(b"".join(LEARNED).decode().split("\n")), vocab_size=350,
    model_prefix=str(tmp_path / "m"), model_type="bpe", minloglevel=2, hard_vocab_limit=False,
    normalization_rule_name="identity", **options,
  )  # fmt: skip
  with pytest.raises(ValueError, match=error):
    PieceVocabulary(tmp_path / "m.model")


def test_rows_carry_the_raw_bytes_of_their_targets(path, pieces):
  """Each byte of each document counts once, however rows cut the documents."""
  section = config.get_config("bpe_lm").patching
  section.tokenizer = str(path)
  patch = patcher.load_patcher(section).documents()
  texts = [*TEXTS.values(), *LEARNED]
  shape = pipeline.BatchShape(batch_size=2, seq_len=24, num_patches=25)
  documents = grain.MapDataset.source([Document(text) for text in texts])
  batches = list(pipeline.evaluation_batches(documents, patch, shape))
  total = sum((b["target_bytes"] * b["loss_mask"]).sum() for b in batches)
  assert total == sum(map(len, texts))
  num_ids = sum(len(pieces(text)) - 1 for text in texts)  # all but BOS is a target
  assert sum(b["loss_mask"].sum() for b in batches) == num_ids
  assert all(b["target_bytes"].shape == (2, 24) for b in batches)


def test_bytes_have_no_such_array():
  documents = grain.MapDataset.source([Document(b"text")])
  patch = PatchDocument(config.make_patching_config(config.get_config("byte_lm").patching))
  (batch,) = pipeline.evaluation_batches(documents, patch, pipeline.BatchShape(1, 8, 9))
  assert sorted(batch) == ["loss_mask", "patch_lengths", "targets", "tokens"]
