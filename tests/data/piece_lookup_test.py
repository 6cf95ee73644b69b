"""Patches that are the pieces of a tokenizer, and their ids in packed rows."""

import numpy as np
import pytest

from blt_jax.data import piece_lookup
from blt_jax.data.packing.rows import PackRows
from blt_jax.data.piece_vocabulary import PieceVocabulary
from blt_jax.data.pieces import PieceEncoder
from blt_jax.data.reading.documents import Document
from blt_jax.data.transforms import PatchPieces
from blt_jax.patching import PatchingConfig, patch_lengths

sentencepiece = pytest.importorskip("sentencepiece", reason="BPE pieces are an extra")
import grain  # noqa: E402
from tiny_pieces import LEARNED, SIZE, TEXTS, write_tokenizer  # noqa: E402

RULE = PatchingConfig(scheme="bpe", delimiters=False)


@pytest.fixture(scope="module", name="path")
def _path(tmp_path_factory):
  return write_tokenizer(tmp_path_factory.mktemp("bpe") / "bpe.model")


@pytest.fixture(scope="module", name="llama_path")
def _llama_path(tmp_path_factory):
  """With the settings of Llama 2's tokenizer, which puts a space before a text."""
  folder = tmp_path_factory.mktemp("llama")
  (folder / "text").write_bytes(b"".join(LEARNED))
  sentencepiece.SentencePieceTrainer.train(
    input=str(folder / "text"), model_prefix=str(folder / "model"), model_type="bpe",
    vocab_size=400, byte_fallback=True, normalization_rule_name="identity",
    remove_extra_whitespaces=False, hard_vocab_limit=False, minloglevel=2,
  )  # fmt: skip
  return folder / "model.model"


def _rows(path, texts, seq_len, num_patches):
  patch = PatchPieces(RULE, PieceEncoder(path).sizes)
  documents = grain.MapDataset.source([patch(Document(text)) for text in texts])
  rows = PackRows(documents.to_iter_dataset(), seq_len, num_patches, 1, batch_size=1)
  look_up = piece_lookup.LookUpPieces(piece_lookup.find_ids(path, own_ids=False)[0])
  return [look_up(batch) for batch in rows]


def test_patches_are_the_pieces_of_the_vocabulary(path):
  vocabulary, patch = PieceVocabulary(path), PatchPieces(RULE, PieceEncoder(path).sizes)
  for text in TEXTS.values():
    found = patch(Document(text))
    assert found["tokens"].tolist() == [1, *(byte + 4 for byte in text), 2]
    sizes = vocabulary.sizes[vocabulary.encode(text)].tolist()
    assert found["patch_lengths"].tolist() == [1, *sizes, 1]
    begun = patch.patch(found["tokens"][:-1])  # as of a prompt
    assert begun["patch_lengths"].tolist() == [1, *sizes]


def test_longer_pieces_are_split(path):
  rule = PatchingConfig(scheme="bpe", delimiters=False, max_patch_length=2)
  found = PatchPieces(rule, PieceEncoder(path).sizes)(Document(b"the patches of the text"))
  assert found["patch_lengths"].max() == 2 and found["patch_lengths"].sum() == 25


def test_a_space_that_a_model_puts_before_texts_is_no_byte(llama_path):
  patch = PatchPieces(RULE, PieceEncoder(llama_path).sizes)
  model = sentencepiece.SentencePieceProcessor(model_file=str(llama_path))
  for text in ("the patch of bytes", "  the text", "x"):
    pieces = model.encode(text, out_type=str)
    sizes = [len(piece.encode().replace("▁".encode(), b" ")) for piece in pieces]
    sizes[0] -= 1
    found = patch(Document(text.encode()))["patch_lengths"].tolist()
    assert found == [1, *filter(None, sizes), 1]


def test_bytes_alone_do_not_tell_pieces():
  with pytest.raises(ValueError, match="without delimiters do not tell pieces apart: give"):
    patch_lengths(np.array([[1, 100, 101]]), RULE)


def test_whole_documents_have_the_ids_of_the_vocabulary(path):
  vocabulary = PieceVocabulary(path)
  assert piece_lookup.find_ids(path, own_ids=False)[1] == vocabulary.size == SIZE
  texts = [text for text in TEXTS.values() if text]
  for text, batch in zip(texts, [_rows(path, [t], 128, 100)[0] for t in texts], strict=True):
    ids = vocabulary(text).tolist()
    rest = [0] * (100 - len(ids))
    # The last patch ends with the padding, if there is any, so it is no piece.
    assert batch["teacher_ids"][0].tolist() == [*ids[:-1], 0, *rest]
    assert batch["teacher_targets"][0].tolist() in (
      [*ids[1:], 0, *rest], [*ids[1:-1], 0, 0, *rest]
    )  # fmt: skip


def test_documents_in_one_row_and_one_that_is_cut(path):
  vocabulary = PieceVocabulary(path)
  first, second = b"the patch", b"the text is patched: check. the patches of the text"
  one, two = vocabulary(first).tolist(), vocabulary(second).tolist()
  rows = _rows(path, [first, second], 40, 30)
  ids, targets = rows[0]["teacher_ids"][0], rows[0]["teacher_targets"][0]
  lengths = rows[0]["patch_lengths"][0]
  assert ids[: len(one)].tolist() == one and targets[: len(one)].tolist() == [*one[1:], 0]
  used = int((lengths > 0).sum())
  begun = used - len(one) - 1  # whole pieces of the second
  assert ids[len(one) : used - 1].tolist() == two[:begun]
  assert targets[len(one) : used].tolist() == [*two[1:begun], 0, 0]

  # The other row begins with one byte, and what is left of a piece is not compared.
  ids, targets = rows[1]["teacher_ids"][0], rows[1]["teacher_targets"][0]
  assert ids[0] == vocabulary.encode(bytes([rows[1]["tokens"][0, 0] - 4]))[0]
  assert targets[0] == 0
  rest = [number for number in targets.tolist() if number]
  assert rest and rest == two[-len(rest) - 1 : -1] or rest == two[-len(rest) :]


def test_masked_answers_are_not_compared(path):
  batch = _rows(path, [b"the patch of the text"], 32, 30)[0]
  masked = batch | {"loss_mask": batch["loss_mask"].copy()}
  masked["loss_mask"][0, 0] = False  # the first byte of the first piece
  ids = piece_lookup.find_ids(path, own_ids=False)[0]
  found = piece_lookup.LookUpPieces(ids)(masked)["teacher_targets"][0]
  assert batch["teacher_targets"][0, 0] > 0 and found[0] == 0
  np.testing.assert_array_equal(found[1:], batch["teacher_targets"][0, 1:])


def test_a_llama_has_the_ids_of_its_own_model(llama_path):
  model = sentencepiece.SentencePieceProcessor(model_file=str(llama_path))
  ids, count = piece_lookup.find_ids(llama_path, own_ids=True)
  assert count == model.vocab_size()
  text = "x of the text: größer"
  patch = PatchPieces(RULE, PieceEncoder(llama_path).sizes)(Document(text.encode()))
  wanted = model.encode(text, add_bos=True, add_eos=True)
  starts = np.cumsum(patch["patch_lengths"]) - patch["patch_lengths"]
  ends = starts + patch["patch_lengths"]
  keys = [patch["tokens"][a:b].tobytes() for a, b in zip(starts, ends, strict=True)]
  found = [ids[key] for key in keys]
  assert found[0] == model.bos_id() and found[-1] == model.eos_id()
  assert found[2:] == wanted[-len(found[2:]) :]  # before them is that space
