"""Counts of n-grams against Python's own, and the files that keep them."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blt_jax import hashing, tokenizer
from blt_jax.entropy import frequent_ngrams
from blt_jax.entropy.frequent_ngrams import Frequent, NgramCounter

TEXTS = st.lists(st.lists(st.sampled_from(b"ab\xff\0"), max_size=30).map(bytes), max_size=6)


def count(texts, n):
  return collections.Counter(t[i : i + n] for t in texts for i in range(len(t) - n + 1))


@settings(max_examples=40)
@given(first=TEXTS, second=TEXTS, n=st.integers(1, 8))
def test_counts_are_those_inside_documents(first, second, n):
  counter = NgramCounter([n])
  counter.add(first)
  counter.add(second)
  wanted = count(first + second, n)
  ngrams, counts = counter.most_frequent(1000)[n]
  assert {bytes(g): c for g, c in zip(ngrams, counts.tolist(), strict=True)} == wanted
  assert counts.tolist() == sorted(counts.tolist(), reverse=True)
  assert counter.missed == {n: 0}


def test_memory_is_bounded_and_what_is_missed_is_known():
  rng = np.random.default_rng(0)
  texts = [bytes(rng.zipf(1.3, 2000).clip(max=255).astype(np.uint8)) for _ in range(20)]
  counter, wanted = NgramCounter([3], max_ngrams=500), count(texts, 3)
  for text in texts:
    counter.add([text])
  assert 0 < counter.missed[3] < wanted.most_common(20)[-1][1]
  ngrams, counts = counter.most_frequent(500)[3]
  assert len(ngrams) <= 500
  for ngram, found in zip(map(bytes, ngrams), counts, strict=True):
    assert wanted[ngram] - counter.missed[3] <= found <= wanted[ngram]
  assert [*map(bytes, ngrams[:5])] == [g for g, _ in wanted.most_common(5)]


def test_tables_come_back_from_their_files(tmp_path):
  counter = NgramCounter([2, 4])
  counter.add([b"abcabcd", b"cab"])
  tables = counter.most_frequent(3)
  frequent_ngrams.save(tmp_path / "tables", tables)
  loaded = frequent_ngrams.load(tmp_path / "tables")
  assert [*loaded] == [2, 4]
  for n in (2, 4):
    np.testing.assert_array_equal(loaded[n].ngrams, tables[n].ngrams)
    np.testing.assert_array_equal(loaded[n].counts, tables[n].counts)
  pairs = frequent_ngrams.to_tables(loaded.values())[0]
  ids = pairs.ids(tokenizer.encode("xabc")[None])[0]
  assert ids.tolist() == [0, 0, 0, hashing.TABLE_OFFSET, hashing.TABLE_OFFSET + 1, 0]


def test_some_of_the_files_are_never_taken_for_all(tmp_path, monkeypatch):
  one = Frequent(np.zeros((2, 3), np.uint8), np.ones(2, int))
  real = np.savez

  def fail(path, **arrays):
    if "ngrams_4" in str(path):
      raise KeyboardInterrupt
    real(path, **arrays)

  with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
    patched.setattr(np, "savez", fail)
    frequent_ngrams.save(tmp_path / "tables", {3: one, 4: one})
  assert not (tmp_path / "tables").exists()
  (tmp_path / "tables").mkdir()
  frequent_ngrams.save(tmp_path / "tables", {3: one})
  assert [path.name for path in tmp_path.rglob("*")] == ["tables", "ngrams_3.npz"]


@pytest.mark.parametrize(
  "table, message",
  [
    (Frequent(np.zeros((2, 4), np.uint8), np.ones(2, int)), r"shape \(2, 4\).*n = 3"),
    (Frequent(np.zeros((2, 3), np.int32), np.ones(2, int)), "int32.*n = 3"),
    (Frequent(np.zeros((2, 3), np.uint8), np.ones(3, int)), "each of 3 counts"),
    (Frequent(np.array([[None] * 3]), np.ones(1, int)), "no n-gram table.*count it anew"),
  ],
)
def test_files_that_are_not_what_they_say(tmp_path, table, message):
  np.savez(tmp_path / "ngrams_3.npz", ngrams=table.ngrams, counts=table.counts)
  with pytest.raises(ValueError, match=message):
    frequent_ngrams.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK\3\4 no archive", b"\x93NUMPY"])
def test_damaged_files(tmp_path, content):
  (tmp_path / "ngrams_3.npz").write_bytes(content)
  with pytest.raises(ValueError, match="ngrams_3.npz is no n-gram table"):
    frequent_ngrams.load(tmp_path)


def test_missing_files(tmp_path):
  for folder in (tmp_path, tmp_path / "none"):
    with pytest.raises(FileNotFoundError, match="no n-gram tables.*count_ngrams"):
      frequent_ngrams.load(folder)
  for sizes in ((), (0,), (9,)):
    with pytest.raises(ValueError, match="have 1 to 8 bytes"):
      NgramCounter(sizes)
