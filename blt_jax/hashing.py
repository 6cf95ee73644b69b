"""Ids of byte n-grams: rolling polynomial hashes and frequency tables.

An n-gram at t is the n bytes that end there; ids left of the row count as 0, and so do
those of other documents where documents are told apart.
Reference: Meta `model/blt.py` (hashes) and `data/ngram_processor.py` (tables).
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = Any  # np.ndarray or jax.Array

PRIMES = (
    1000000007, 5915587277, 1500450271, 3267000013, 5754853343, 4093082899,
    9576890767, 3628273133, 2860486313, 5463458053, 3367900313,
)  # fmt: skip
TABLE_OFFSET = 4  # ids of frequency tables start here; 0 is "unknown"
_IDS = 260  # that tokens may have in such a table
_MAX_NGRAMS = 2**31 // _IDS  # of a table: a place and an id are one int32


def ngram_hash_ids(
  tokens: Array,
  sizes: Sequence[int],
  vocab_size: int,
  num_functions: int = 1,
  document_ids: Array | None = None,
) -> Array:
  """Hashes the n-grams that end at each byte.

  The hash of bytes b[0..n-1], oldest first, is sum(b[i] * prime**i) in signed 64-bit
  arithmetic that wraps around, then the floor modulo. On jax arrays this runs on
  uint32 halves, since accelerators have no 64-bit integers.

  Args:
    tokens: int [B, S] ids, below 2**16.
    sizes: the n of the n-grams.
    vocab_size: number of hash buckets, below 2**31.
    num_functions: hash functions; each has its own prime (they repeat after 11).
    document_ids: int [B, S], the document of each byte, whose predecessors in other
      documents count as 0; None hashes across documents, as the references do.

  Returns:
    int32 [num_functions * len(sizes), B, S], function by function.

  Raises:
    ValueError: a size is below 1, the number of buckets is out of range, or documents do
      not have the shape of tokens.
  """
  if min(sizes) < 1 or not 1 <= vocab_size < 2**31:
    raise ValueError(
      f"n-gram sizes must be >= 1 and buckets in [1, 2**31), got {sizes}, {vocab_size}."
    )
  _check_documents(tokens, document_ids)
  xp = jnp if isinstance(tokens, jax.Array) else np
  before = [_look_back(xp, tokens, n, document_ids) for n in range(max(sizes))]
  ids = [_hash(before, sizes, vocab_size, prime) for prime in _primes(num_functions)]
  return xp.stack([one for some in ids for one in some])


def pixel_hash_ids(
  tokens: Array,
  places: Array,
  picture_size: Sequence[int],
  vocab_size: int,
  num_functions: int = 1,
) -> Array:
  """Hashes two n-grams of a picture at each byte, as `ngram_hash_ids` does.

  The first are the bytes of a pixel, at its last channel. The second are the bytes above and
  to the left, above, and to the left, of the same channel, in this order. What does not exist
  counts as 0: the first n-gram at other channels, bytes beyond the picture's left and upper
  edge, and both n-grams at what stands before its first byte or after its last one.

  Args:
    tokens: int [B, S] ids, below 2**16.
    places: int [B, S], of each id in its document: 0 for a BOS, 1 for the first byte of a
      picture, which goes row by row, the channels of a pixel together.
    picture_size: height, width, channels.
    vocab_size: number of hash buckets, below 2**31.
    num_functions: hash functions.

  Returns:
    int32 [num_functions * 2, B, S], function by function.
  """
  xp = jnp if isinstance(tokens, jax.Array) else np
  height, width, channels = picture_size
  byte = places - 1
  is_inside = (byte >= 0) & (byte < height * width * channels)
  column, row = byte // channels % width, byte // (channels * width)

  def look_back(distance: int, exists: Array) -> Array:
    return xp.where(is_inside & exists, _look_back(xp, tokens, distance, None), 0)

  is_last = byte % channels == channels - 1
  pixel = [look_back(n, is_last) for n in range(channels)]
  line = width * channels
  around = [
    look_back(channels, column > 0),
    look_back(line, row > 0),
    look_back(line + channels, (column > 0) & (row > 0)),
  ]
  return xp.stack([
    _hash(before, [len(before)], vocab_size, prime)[0]
    for prime in _primes(num_functions)
    for before in (pixel, around)
  ])  # fmt: skip


def _primes(count: int) -> list[int]:
  return [PRIMES[i % len(PRIMES)] for i in range(count)]


def _check_documents(tokens: Array, document_ids: Array | None) -> None:
  if document_ids is not None and document_ids.shape != tokens.shape:
    raise ValueError(
      f"document_ids must have the shape of tokens, {tokens.shape}, got {document_ids.shape}."
    )


def _hash(
  before: Sequence[Array], sizes: Sequence[int], vocab_size: int, prime: int
) -> list[Array]:
  """Hashes [B, S] of the first n ids of `before`, newest first, for each n of `sizes`."""
  hash_one = _hash_jax if isinstance(before[0], jax.Array) else _hash_numpy
  return hash_one(before, sizes, vocab_size, prime)


def _hash_numpy(
  before: Sequence[np.ndarray], sizes: Sequence[int], vocab_size: int, prime: int
) -> list[np.ndarray]:
  # Horner's scheme from the newest byte back: hash_n = oldest + prime * hash_(n-1).
  value = np.zeros(before[0].shape, np.int64)
  by_size = {}
  for n, ids in enumerate(before, start=1):
    value = value * np.int64(prime) + ids
    by_size[n] = (value % vocab_size).astype(np.int32)
  return [by_size[n] for n in sizes]


def _hash_jax(
  before: Sequence[jax.Array], sizes: Sequence[int], vocab_size: int, prime: int
) -> list[jax.Array]:
  high = low = jnp.zeros(before[0].shape, jnp.uint32)
  by_size = {}
  for n, ids in enumerate(before, start=1):
    high, low = _multiply(high, low, prime)
    total = low + ids.astype(jnp.uint32)
    high, low = high + (total < low), total
    by_size[n] = _signed_modulo(high, low, vocab_size).astype(jnp.int32)
  return [by_size[n] for n in sizes]


def _look_back(xp: Any, tokens: Array, distance: int, document_ids: Array | None) -> Array:
  """Each byte's `distance`-th predecessor [B, S], 0 outside of its row or document."""

  def shift(x: Array) -> Array:
    return xp.pad(x, ((0, 0), (distance, 0)))[:, : x.shape[1]]

  if document_ids is None or distance == 0:
    return shift(tokens)
  return xp.where(shift(document_ids) == document_ids, shift(tokens), 0)


def _multiply(high, low, factor: int):
  """(high, low) * factor modulo 2**64; the low words' product goes by 16-bit halves."""
  factor_high, factor_low = jnp.uint32(factor >> 32), factor & 0xFFFFFFFF
  a, b = jnp.uint32(factor_low >> 16), jnp.uint32(factor_low & 0xFFFF)
  c, d = low >> 16, low & 0xFFFF
  middle = b * c + (b * d >> 16)
  carry = a * d + (middle & 0xFFFF)
  product_high = a * c + (middle >> 16) + (carry >> 16)
  low_product = low * jnp.uint32(factor_low)
  return high * jnp.uint32(factor_low) + low * factor_high + product_high, low_product


def _signed_modulo(high, low, modulus: int):
  """The signed 64-bit number (high, low) modulo `modulus`, with a result >= 0."""
  bits = 32 - modulus.bit_length()  # digits so small that remainder * 2**bits fits
  remainder = jnp.zeros_like(low)
  for word in (high, low):
    for shift in range(32 - bits, -bits, -bits):
      width = bits + min(shift, 0)
      digit = (word >> max(shift, 0)) & ((1 << width) - 1)
      remainder = ((remainder << width) + digit) % modulus
  two_64 = jnp.uint32(-(2**64) % modulus)  # what reading the top bit as a sign takes off
  return jnp.where(high >> 31 == 1, (remainder + two_64) % modulus, remainder)


class NgramTable:
  """Ids of the most frequent n-grams.

  Attributes:
    length: n.
    size: number of ids, `TABLE_OFFSET` included: the rows of its embedding table.
    keys: what finds an n-gram on a device; an argument of `ngram_table_ids`.
  """

  def __init__(self, ngrams: np.ndarray):
    """Takes ngrams, int [N, n] ids, most frequent first.

    Raises:
      ValueError: an n-gram stands there twice, there is none, or ids are out of range.
    """
    ngrams = np.asarray(ngrams, np.int64)
    if ngrams.ndim != 2 or not ngrams.size or not 0 <= ngrams.min() <= ngrams.max() < _IDS:
      raise ValueError(
        f"A table takes n-grams of ids below {_IDS}, int [N, n] with N, n >= 1, got shape "
        f"{ngrams.shape}."
      )
    if len(ngrams) > _MAX_NGRAMS:
      raise ValueError(f"A table takes {_MAX_NGRAMS:,} n-grams at most, got {len(ngrams):,}.")
    self.length, self.size = ngrams.shape[1], len(ngrams) + TABLE_OFFSET
    self.keys = _make_keys(ngrams, np.int32, first=3, rest=1)
    self._host_keys = _make_keys(ngrams, np.int64, first=7, rest=4)
    self._levels = [_KeyIndex(level) for level in self._host_keys.levels]

  def ids(self, tokens: Array, document_ids: Array | None = None) -> Array:
    """Looks up the n-gram that ends at each byte.

    Args:
      tokens: int [B, S] ids; of jax, too.
      document_ids: int [B, S] or None; see `ngram_hash_ids`.

    Returns:
      int32 [B, S], 0 where unknown.

    Raises:
      ValueError: documents do not have the shape of tokens.
    """
    if isinstance(tokens, jax.Array):
      return ngram_table_ids(self.keys, tokens, document_ids)
    finders = [level.find for level in self._levels]
    return _look_up(np, self._host_keys, finders, np.asarray(tokens), document_ids)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NgramKeys:
  """The n-grams of a table as a trie: each level adds a few ids to what the last one found.

  Attributes:
    levels: int [K] each, ascending: the place found on the level before, then ids, as the
      digits of one number.
    ids: int32 [N], of what the last level holds.
    widths: ids that each level adds, n in all.
  """

  levels: tuple[Array, ...]
  ids: Array
  widths: tuple[int, ...] = dataclasses.field(metadata={"static": True})


def _make_keys(ngrams: np.ndarray, dtype: Any, first: int, rest: int) -> NgramKeys:
  """Keys of ngrams [N, n]: numbers of `first` ids, then of `rest`, have to fit `dtype`."""
  length = ngrams.shape[1]
  edges = [0, *range(min(first, length), length, rest), length]
  place, levels = np.zeros(len(ngrams), np.int64), []
  for start, end in itertools.pairwise(edges):
    for column in ngrams.T[start:end]:
      place = place * _IDS + column
    level, place = np.unique(place, return_inverse=True)
    levels.append(level.astype(dtype))
  ids = np.zeros(len(levels[-1]), np.int32)
  ids[place] = np.arange(len(ngrams)) + TABLE_OFFSET
  if len(ids) < len(ngrams):
    raise ValueError(f"{len(ngrams) - len(ids)} of {len(ngrams)} n-grams of a table repeat.")
  return NgramKeys(tuple(levels), ids, tuple(np.diff(edges).tolist()))


def ngram_table_ids(
  keys: NgramKeys, tokens: jax.Array, document_ids: jax.Array | None = None
) -> jax.Array:
  """Looks up the n-gram that ends at each byte: int32 [B, S], 0 where unknown.

  Args:
    keys: of a table, where tokens are.
    tokens: int [B, S] ids.
    document_ids: int [B, S] or None; see `ngram_hash_ids`.

  Raises:
    ValueError: documents do not have the shape of tokens.
  """
  finders = [functools.partial(_search, level) for level in keys.levels]
  return _look_up(jnp, keys, finders, tokens, document_ids)


def _search(level: jax.Array, keys: jax.Array) -> jax.Array:
  """Where keys [B, S] stand in a level [K], ascending; -1 for those that do not."""
  found = jnp.minimum(jnp.searchsorted(level, keys), len(level) - 1).astype(keys.dtype)
  return jnp.where(level[found] == keys, found, -1)


def _look_up(
  xp: Any,
  keys: NgramKeys,
  finders: Sequence[Callable[[Array], Array]],
  tokens: Array,
  document_ids: Array | None,
) -> Array:
  """As `ngram_table_ids`, with what finds the keys of each level."""
  _check_documents(tokens, document_ids)
  distance = sum(keys.widths)
  place = xp.zeros(tokens.shape, keys.levels[0].dtype)
  for find, width in zip(finders, keys.widths, strict=True):
    for _ in range(width):
      distance -= 1
      place = place * _IDS + _look_back(xp, tokens, distance, document_ids).astype(place.dtype)
    place = find(place)  # -1 stays negative with more digits, and no key is
  return xp.where((place >= 0) & (tokens >= 0), keys.ids[place], 0).astype(xp.int32)


class _KeyIndex:
  """Finds keys in a hash table, eight times as fast as NumPy's search of sorted ones."""

  def __init__(self, keys: np.ndarray):
    """Takes int64 [K], none twice; a quarter of the slots at most is in use."""
    self._keys, bits = keys, (4 * len(keys)).bit_length()
    self._shift, self._last = np.uint64(64 - bits), (1 << bits) - 1
    self._slots = np.full(1 << bits, -1, np.int32)
    left, at = np.arange(len(keys), dtype=np.int32), self._start(keys)
    while len(left):
      is_free = self._slots[at] < 0
      self._slots[at[is_free]] = left[is_free]
      is_out = self._slots[at] != left
      left, at = left[is_out], at[is_out] + 1 & self._last

  def find(self, keys: np.ndarray) -> np.ndarray:
    """Where keys int64 [B, S] stand: int64, -1 for those that do not."""
    wanted = keys.reshape(-1)
    at = self._start(wanted)
    found = self._slots[at]
    wrong = np.flatnonzero((found >= 0) & (self._keys[found] != wanted))
    while len(wrong):
      at[wrong] = at[wrong] + 1 & self._last
      here = found[wrong] = self._slots[at[wrong]]
      wrong = wrong[(here >= 0) & (self._keys[here] != wanted[wrong])]
    return found.reshape(keys.shape).astype(np.int64)

  def _start(self, keys: np.ndarray) -> np.ndarray:
    # The high bits of a product with 2**64 / golden ratio.
    return (keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> self._shift).astype(int)
