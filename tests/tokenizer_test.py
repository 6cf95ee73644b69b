"""Tests of tokenizer.py."""

import chex
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blt_jax import tokenizer


def test_vocabulary():
  ids = (tokenizer.BOE_ID, tokenizer.BOS_ID, tokenizer.EOS_ID, tokenizer.BPE_ID)
  assert ids == (0, 1, 2, 3)
  assert (tokenizer.OFFSET, tokenizer.VOCAB_SIZE) == (4, 260)


@pytest.mark.parametrize(
  "text, ids",
  [
    ("Hi", [1, 76, 109, 2]),
    ("Let's", [1, 80, 105, 120, 43, 119, 2]),
    ("", [1, 2]),
    ("é", [1, 0xC3 + 4, 0xA9 + 4, 2]),
    (b"\x00\xff", [1, 4, 259, 2]),
  ],
)
def test_encode(text, ids):
  encoded = tokenizer.encode(text)
  assert encoded.dtype == np.int32
  chex.assert_trees_all_equal(encoded, np.array(ids, np.int32))


@pytest.mark.parametrize("add_bos", [False, True])
@pytest.mark.parametrize("add_eos", [False, True])
def test_encode_adds_specials_on_request(add_bos, add_eos):
  want = [1] * add_bos + [76, 109] + [2] * add_eos
  assert tokenizer.encode("Hi", add_bos, add_eos).tolist() == want


def test_lone_surrogates_are_dropped():
  assert tokenizer.encode("a\ud800b", False, False).tolist() == [101, 102]


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_text_round_trip(text):
  assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.binary())
def test_bytes_round_trip(raw):
  ids = tokenizer.encode(raw)
  assert tokenizer.decode_bytes(ids) == raw
  assert tokenizer.decode(ids) == raw.decode("utf-8", errors="ignore")


def test_decode_drops_specials_and_broken_characters():
  assert tokenizer.decode([1, 3, 76, 0, 109, 2, 2]) == "Hi"
  assert tokenizer.decode([101, 0xC3 + 4]) == "a"
  assert tokenizer.decode([-1, 101]) == "a"
  assert tokenizer.decode([]) == ""
  assert tokenizer.decode(np.array([[101], [102]])) == "ab"


def test_decode_rejects_ids_beyond_the_vocabulary():
  with pytest.raises(ValueError, match="Id 260 .* below 260"):
    tokenizer.decode([101, 260])
