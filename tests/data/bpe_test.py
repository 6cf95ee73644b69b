"""Text with delimiters before its BPE pieces."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blt_jax import config, tokenizer
from blt_jax.data.pieces import PieceEncoder
from blt_jax.data.reading.documents import Document
from blt_jax.runs import patcher

sentencepiece = pytest.importorskip("sentencepiece", reason="the bpe scheme is an extra")


@pytest.fixture(scope="module", name="train")
def _train(tmp_path_factory):
  """Trains a model with the settings of Llama 2's, and others on request."""
  folder = tmp_path_factory.mktemp("bpe")
  words = "the patch of bytes  is a text, and the text is patched: check. "
  (folder / "text").write_text("\n".join([words] * 9))

  def train(**changes):
    sentencepiece.SentencePieceTrainer.train(**{
      "input": str(folder / "text"), "model_prefix": str(folder / "model"),
      "model_type": "bpe", "vocab_size": 330, "byte_fallback": True,
      "normalization_rule_name": "identity", "remove_extra_whitespaces": False,
      "hard_vocab_limit": False, "minloglevel": 2, **changes,
    })  # fmt: skip
    return folder / "model.model"

  return train


@pytest.fixture(scope="module", name="path")
def _path(train, tmp_path_factory):
  return train().rename(tmp_path_factory.mktemp("model") / "bpe.model")


def test_delimiters_stand_before_pieces(path):
  encode = PieceEncoder(path)
  pieces = list(encode.split(b"the patch"))
  assert b"".join(pieces) == b"the patch" and pieces[0].startswith(b"t") and len(pieces) > 1
  assert list(encode.split(b"   the"))[:1] == [b"   "]
  assert list(encode.split("é".encode())) == [b"\xc3", b"\xa9"]  # unknown to the model
  want = [1, *(i for p in pieces for i in (3, *(byte + 4 for byte in p))), 2]
  np.testing.assert_array_equal(encode(b"the patch"), want)
  assert encode(b"").tolist() == [1, 2]


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=20), st.text(max_size=20).map(str.encode),
                 st.text(" ▁\n\0ab<0x41>", max_size=20).map(str.encode)))  # fmt: skip
def test_every_byte_stays(path, text):
  encode = pickle.loads(pickle.dumps(PieceEncoder(path)))
  ids = encode(text)
  np.testing.assert_array_equal(ids[ids != tokenizer.BPE_ID], tokenizer.encode(text))
  assert not (ids[1:-1][:-1] == 3)[(ids[1:-1][1:] == 3)].any()  # no empty piece


def test_delimiters_close_patches(path):
  section = config.get_config("blt").patching
  section.update(scheme="bpe", tokenizer=str(path))
  patched = patcher.load_patcher(section).documents()(Document(b"the text"))
  ends = np.cumsum(patched["patch_lengths"]) - 1
  delimiters = np.flatnonzero(patched["tokens"] == tokenizer.BPE_ID)
  np.testing.assert_array_equal(ends, [0, *delimiters, len(patched["tokens"]) - 1])


def test_mistakes_are_named(train, tmp_path):
  def load(**changes):
    section = config.get_config("blt").patching
    section.update(**{"scheme": "bpe", **changes})
    return patcher.load_patcher(section)

  with pytest.raises(ValueError, match="bpe scheme needs config.patching.tokenizer"):
    load()
  with pytest.raises(FileNotFoundError, match="config.patching.tokenizer"):
    load(tokenizer=str(tmp_path / "none"))
  (tmp_path / "bad").write_text("bad")
  with pytest.raises(ValueError, match="bad holds no SentencePiece model"):
    load(tokenizer=str(tmp_path / "bad"))
  normalizing = PieceEncoder(
    train(normalization_rule_name="nfkc", remove_extra_whitespaces=True)
  )
  with pytest.raises(ValueError, match="not the text itself"):
    normalizing("a  ﬁne".encode())
