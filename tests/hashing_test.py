"""Ids of n-grams: hashes, pixels, tables."""

import functools

import chex
import golden_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blt_jax import hashing

SIZES = tuple(range(2, 9))
VECTORS = [  # tokens, n, ids in 500002 buckets of the first function
    ([1, 76, 109, 2], 3, [443987, 124875, 169910, 452813]),
    ([1, 76, 109, 2], 4, [437197, 433869, 270220, 447804]),
    ([1, 76, 109, 2], 5, [123201, 168913, 117192, 16620]),
    ([1, 76, 109, 2], 6, [166353, 160907, 354218, 46394]),
    ([1, 76, 109, 2], 7, [34117, 338221, 151626, 18948]),
    ([1, 76, 109, 2], 8, [172383, 205585, 338764, 92888]),
    ([4, 5, 6], 3, [275942, 203955, 143951]),
    (
        [1, 70, 80, 88, 36, 102, 125, 120, 105, 119, 37, 2], 3,
        [443987, 460965, 125301, 233820, 325162, 221820, 266389, 454691, 218402, 494086,
         145389, 240350],
    ),
    ([1, 199, 195, 199, 173, 2], 8, [172383, 198466, 281395, 18730, 303721, 382875]),
]  # fmt: skip
LAST_IDS = [  # of eight 259s, by function
    460242, 244098, 373212, 242630, 259332, 420906, 127946, 193886, 412264, 436608, 176722,
]  # fmt: skip

jitted_ids = jax.jit(hashing.ngram_hash_ids, static_argnums=(1, 2, 3))


def both(tokens, sizes, vocab_size, num_functions=1, jit=True):
  """Hashes on numpy and on jax, and compares."""
  tokens = np.asarray(tokens, np.int32)
  ids = hashing.ngram_hash_ids(tokens, sizes, vocab_size, num_functions)
  on_jax = jitted_ids if jit else hashing.ngram_hash_ids
  others = on_jax(jnp.asarray(tokens), sizes, vocab_size, num_functions)
  assert isinstance(ids, np.ndarray) and isinstance(others, jax.Array)
  assert ids.dtype == others.dtype == np.int32
  chex.assert_shape(ids, (num_functions * len(sizes), *tokens.shape))
  chex.assert_trees_all_equal(np.asarray(others), ids)
  return ids


def python_hash(window, prime, vocab_size):
  """Hash of one n-gram, oldest first, in Python's unbounded integers."""
  value = sum(int(x) * prime**i for i, x in enumerate(window)) % 2**64
  return (value - 2**64 * (value >= 2**63)) % vocab_size


@functools.cache
def golden_batch():
  """All golden rows under each other, zeros on the right, and where each case starts."""
  cases = golden_cases.load("hash_cases")
  width = max(fields["tokens"].shape[1] for _, fields in cases)
  pad = [np.pad(f["tokens"], ((0, 0), (0, width - f["tokens"].shape[1]))) for _, f in cases]
  return cases, np.concatenate(pad), np.cumsum([0] + [len(x) for x in pad])


@pytest.mark.parametrize(
  "vocab_size, jit", [(500002, True), (50002, False), (30000, False), (97, False)]
)
def test_golden_hashes(vocab_size, jit):
  cases, tokens, starts = golden_batch()
  ids = both(tokens, SIZES, vocab_size, len(hashing.PRIMES), jit)
  ids = ids.reshape(len(hashing.PRIMES), len(SIZES), *tokens.shape)
  for (case, fields), start in zip(cases, starts, strict=False):
    assert hashing.PRIMES[case["func_nb"]] == case["prime"]
    want = fields[f"mod_{vocab_size}"]
    rows = ids[case["func_nb"], case["group_size"] - SIZES[0], start : start + len(want)]
    chex.assert_trees_all_equal(rows[:, : want.shape[1]], want)


@pytest.mark.parametrize("tokens, size, ids", VECTORS)
def test_vectors(tokens, size, ids):
  assert both([tokens], (size,), 500002, jit=False)[0, 0].tolist() == ids


def test_functions_repeat_after_the_last_prime():
  ids = both([[259] * 8], (8,), 500002, num_functions=13, jit=False)[:, 0, -1]
  want = [
    python_hash([259] * 8, prime, 500002) for prime in (*hashing.PRIMES, *hashing.PRIMES[:2])
  ]
  assert ids.tolist() == want
  assert want[:11] == LAST_IDS


def test_order_is_function_by_function():
  tokens = [[5, 6, 7, 8]]
  ids = both(tokens, (3, 2), 97, num_functions=2)
  for function, prime in enumerate(hashing.PRIMES[:2]):
    assert ids[2 * function, 0, -1] == python_hash([6, 7, 8], prime, 97)
    assert ids[2 * function + 1, 0, -1] == python_hash([7, 8], prime, 97)


@pytest.mark.parametrize(
  "vocab_size", [1, 2, 3, 97, 2**16, 2**16 + 1, 500002, 10**9 + 7, 2**30, 2**31 - 1]
)
def test_numpy_jax_and_python_agree(vocab_size):
  rng = np.random.default_rng(vocab_size)
  tokens = np.concatenate([
      rng.integers(0, 260, (40, 32)),
      rng.integers(0, 2**16, (8, 32)),
      np.full((1, 32), 2**16 - 1),
      np.zeros((1, 32), np.int64),
  ])  # fmt: skip
  sizes = (1, 3, 8)
  ids = both(tokens, sizes, vocab_size, num_functions=2)
  assert (ids >= 0).all() and (ids < vocab_size).all()
  padded = np.pad(tokens, ((0, 0), (8, 0)))
  for _ in range(200):
    table, row, column = rng.integers(ids.shape)
    size = sizes[table % len(sizes)]
    window = padded[row, 9 + column - size : 9 + column]
    want = python_hash(window, hashing.PRIMES[table // len(sizes)], vocab_size)
    assert ids[table, row, column] == want


def test_hashes_depend_on_the_window_only():
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, 260, (2, 24)).astype(np.int32)
  tokens[1, 10:20] = tokens[0, 10:20]
  ids = hashing.ngram_hash_ids(tokens, (4,), 500002)[0]
  chex.assert_trees_all_equal(ids[0, 13:20], ids[1, 13:20])
  chex.assert_trees_all_equal(
    hashing.ngram_hash_ids(tokens[:, :9], (4,), 500002)[0], ids[:, :9]
  )


def random_documents(seed):
  """Ids [B, S], the documents that they are in, and where those begin."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(0, 260, (4, 40)).astype(np.int32)
  begins = rng.random(tokens.shape) < 0.2
  return tokens, np.cumsum(begins, axis=1), begins


@pytest.mark.parametrize("jit", [True, False])
def test_bytes_of_other_documents_count_as_zero(jit):
  """A document hashes as a row of its own."""
  tokens, documents, begins = random_documents(1)
  hash_ids = jitted_ids if jit else hashing.ngram_hash_ids
  ids = hashing.ngram_hash_ids(tokens, (3, 1, 8), 97, 2, documents)
  on_jax = hash_ids(jnp.asarray(tokens), (3, 1, 8), 97, 2, jnp.asarray(documents))
  assert isinstance(ids, np.ndarray) and ids.dtype == on_jax.dtype == np.int32
  chex.assert_trees_all_equal(np.asarray(on_jax), ids)
  for row, begin in enumerate(begins):
    for piece in np.split(np.arange(tokens.shape[1]), np.flatnonzero(begin)):
      alone = hashing.ngram_hash_ids(tokens[row : row + 1, piece], (3, 1, 8), 97, 2)
      chex.assert_trees_all_equal(ids[:, row, piece], alone[:, 0])


def test_documents_by_hand():
  tokens, documents = np.array([[5, 6, 7, 8, 9]]), np.array([[0, 0, 3, 3, 3]])
  ids = hashing.ngram_hash_ids(tokens, (3,), 500002, document_ids=documents)[0, 0]
  windows = [0, 0, 5], [0, 5, 6], [0, 0, 7], [0, 7, 8], [7, 8, 9]
  assert ids.tolist() == [python_hash(w, hashing.PRIMES[0], 500002) for w in windows]
  table = hashing.NgramTable(np.array([[6, 7], [7, 8], [0, 7]]))
  assert table.ids(tokens).tolist() == [[0, 0, 4, 5, 0]]
  assert table.ids(tokens, documents).tolist() == [[0, 0, 6, 5, 0]]


def test_documents_of_another_shape():
  tokens, documents = np.ones((2, 4), np.int32), np.zeros((1, 4), np.int32)
  with pytest.raises(ValueError, match=r"shape of tokens, \(2, 4\), got \(1, 4\)"):
    hashing.ngram_hash_ids(tokens, (3,), 97, document_ids=documents)
  with pytest.raises(ValueError, match=r"shape of tokens, \(2, 4\), got \(1, 4\)"):
    hashing.NgramTable(np.array([[7, 8]])).ids(tokens, documents)


@pytest.mark.parametrize("sizes, vocab_size", [((0, 3), 97), ((3,), 0), ((3,), 2**31)])
@pytest.mark.parametrize("to_array", [np.asarray, jnp.asarray])
def test_hash_errors(sizes, vocab_size, to_array):
  with pytest.raises(ValueError, match=rf"sizes must be >= 1 and buckets.*{vocab_size}"):
    hashing.ngram_hash_ids(to_array(np.ones((1, 4), np.int32)), sizes, vocab_size)


@pytest.mark.parametrize("case, fields", golden_cases.load("ngram_cases"))
def test_golden_ngram_tables(case, fields):
  assert case["lookup_offset"] == hashing.TABLE_OFFSET
  table = hashing.NgramTable(fields["table"])
  assert table.size == len(fields["table"]) + hashing.TABLE_OFFSET
  ids = table.ids(fields["tokens"])
  assert ids.dtype == np.int32
  chex.assert_trees_all_equal(ids, fields["ids"])


def test_ngram_table_by_hand():
  table = hashing.NgramTable(np.array([[7, 8], [0, 7]]))
  assert table.size == 6
  assert table.ids(np.array([[7, 8, 7, 8], [9, 9, 0, 7]])).tolist() == [
    [5, 4, 0, 4],
    [0, 0, 0, 5],
  ]


@pytest.mark.parametrize("length", range(1, 10))
def test_tables_are_those_of_a_dictionary(length):
  rng = np.random.default_rng(length)
  tokens = rng.choice([0, 1, 2, 97, 259], (8, 40)).astype(np.int32)
  windows = np.lib.stride_tricks.sliding_window_view(tokens, length, axis=1)
  ngrams = rng.permutation(np.unique(windows.reshape(-1, length), axis=0))[:50]
  known = {tuple(g): i + hashing.TABLE_OFFSET for i, g in enumerate(ngrams.tolist())}
  padded = np.pad(tokens, ((0, 0), (length - 1, 0))).tolist()
  wanted = [[known.get(tuple(row[t : t + length]), 0) for t in range(40)] for row in padded]
  table = hashing.NgramTable(ngrams)
  assert table.ids(tokens).tolist() == wanted
  on_device = jax.jit(hashing.ngram_table_ids)(table.keys, jnp.asarray(tokens))
  chex.assert_trees_all_equal(np.asarray(on_device), np.array(wanted, np.int32))


@pytest.mark.parametrize("length", [3, 9])
def test_a_large_table_finds_all_of_its_ngrams_and_no_others(length):
  """So many that keys of a hash table meet."""
  rng = np.random.default_rng(0)
  ngrams = np.unique(rng.integers(0, 260, (40_000, length)), axis=0)
  known, unknown = ngrams[::2], ngrams[1::2]
  table = hashing.NgramTable(known)
  np.testing.assert_array_equal(
    table.ids(known)[:, -1], np.arange(len(known)) + hashing.TABLE_OFFSET
  )
  assert not table.ids(unknown)[:, -1].any()


@pytest.mark.parametrize(
  "ngrams, message",
  [
    (np.array([[5, 6], [5, 6], [7, 8]]), "1 of 3 n-grams of a table repeat"),
    (np.array([[5, 260]]), "ids below 260"),
    (np.array([[-1, 6]]), "ids below 260"),
    (np.zeros((0, 2)), "N, n >= 1"),
    (np.array([5, 6]), "got shape .2"),
  ],
)
def test_tables_that_are_none(ngrams, message):
  with pytest.raises(ValueError, match=message):
    hashing.NgramTable(ngrams)


# --- Pixels


@pytest.mark.parametrize("channels", [1, 3])
def test_ngrams_of_pixels_are_those_of_their_bytes(channels):
  """Each is hashed here as the one n-gram of a row that holds its bytes alone."""
  height, width, functions, buckets = 3, 4, 2, 97
  count = height * width * channels
  tokens = np.random.default_rng(0).integers(4, 260, (1, count + 5)).astype(np.int32)
  places = np.arange(count + 5)[None] - 2  # an id of another document, then a BOS
  size = height, width, channels
  found = hashing.pixel_hash_ids(tokens, places, size, buckets, functions)
  jitted = jax.jit(hashing.pixel_hash_ids, static_argnums=(2, 3, 4))
  chex.assert_trees_all_equal(
    found, np.asarray(jitted(tokens, places, size, buckets, functions))
  )
  wanted = np.zeros((4, 1, count + 5), np.int32)
  picture = tokens[0, 3 : 3 + count].reshape(size)
  for byte, (y, x, channel) in enumerate(np.ndindex(size)):
    pixel = picture[y, x] if channel == channels - 1 else [0] * channels
    at = ((y - 1, x - 1), (y - 1, x), (y, x - 1))
    around = [picture[r, c, channel] if min(r, c) >= 0 else 0 for r, c in at]
    for n, ids in enumerate((pixel, around)):
      hashes = hashing.ngram_hash_ids(np.array([ids]), [len(ids)], buckets, functions)
      wanted[n::2, 0, 3 + byte] = hashes[:, 0, -1]
  np.testing.assert_array_equal(found, wanted)


def test_ngrams_of_pixels_see_nothing_of_later_bytes():
  rng = np.random.default_rng(0)
  tokens = rng.integers(4, 260, (1, 25)).astype(np.int32)
  places, size = np.arange(25)[None], (2, 4, 3)
  ids = hashing.pixel_hash_ids(tokens, places, size, 1000)
  for t in range(25):
    other = np.where(places > t, rng.integers(4, 260, tokens.shape), tokens)
    changed = hashing.pixel_hash_ids(other, places, size, 1000)
    np.testing.assert_array_equal(changed[..., : t + 1], ids[..., : t + 1])
