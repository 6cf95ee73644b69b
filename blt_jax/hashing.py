"""Ids of byte n-grams: rolling polynomial hashes and frequency tables.

An n-gram at t is the n bytes that end there; ids left of the row count as 0, and so do
those of other documents where documents are told apart.
Reference: Meta `model/blt.py` (hashes) and `data/ngram_processor.py` (tables).
"""

from collections.abc import Sequence
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
  hash_one = _hash_jax if isinstance(tokens, jax.Array) else _hash_numpy
  stack = jnp.stack if isinstance(tokens, jax.Array) else np.stack
  primes = [PRIMES[i % len(PRIMES)] for i in range(num_functions)]
  arguments = tokens, document_ids, sizes, vocab_size
  return stack([ids for prime in primes for ids in hash_one(*arguments, prime)])


def _check_documents(tokens: Array, document_ids: Array | None) -> None:
  if document_ids is not None and document_ids.shape != tokens.shape:
    raise ValueError(
      f"document_ids must have the shape of tokens, {tokens.shape}, got {document_ids.shape}."
    )


def _hash_numpy(
  tokens: np.ndarray,
  document_ids: np.ndarray | None,
  sizes: Sequence[int],
  vocab_size: int,
  prime: int,
) -> list[np.ndarray]:
  # Horner's scheme from the newest byte back: hash_n = oldest + prime * hash_(n-1).
  value = np.zeros(tokens.shape, np.int64)
  by_size = {}
  for n in range(1, max(sizes) + 1):
    value = value * np.int64(prime) + _look_back(np, tokens, n - 1, document_ids)
    by_size[n] = (value % vocab_size).astype(np.int32)
  return [by_size[n] for n in sizes]


def _hash_jax(
  tokens: jax.Array,
  document_ids: Array | None,
  sizes: Sequence[int],
  vocab_size: int,
  prime: int,
) -> list[jax.Array]:
  tokens = tokens.astype(jnp.uint32)
  high = low = jnp.zeros(tokens.shape, jnp.uint32)
  by_size = {}
  for n in range(1, max(sizes) + 1):
    high, low = _multiply(high, low, prime)
    total = low + _look_back(jnp, tokens, n - 1, document_ids)
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
    size: number of ids, `TABLE_OFFSET` included: the rows of its embedding table.
  """

  def __init__(self, ngrams: np.ndarray):
    """Takes ngrams, int [N, n], most frequent first."""
    self.size = len(ngrams) + TABLE_OFFSET
    self._length = ngrams.shape[1]
    self._ids = {tuple(g): i + TABLE_OFFSET for i, g in enumerate(ngrams.tolist())}

  def ids(self, tokens: np.ndarray, document_ids: np.ndarray | None = None) -> np.ndarray:
    """Looks up the n-gram that ends at each byte.

    Args:
      tokens: int [B, S] ids.
      document_ids: int [B, S] or None; see `ngram_hash_ids`.

    Returns:
      int32 [B, S], 0 where unknown.

    Raises:
      ValueError: documents do not have the shape of tokens.
    """
    tokens = np.asarray(tokens)
    _check_documents(tokens, document_ids)
    columns = [
      _look_back(np, tokens, i, document_ids).reshape(-1).tolist() for i in range(self._length)
    ]
    found = [self._ids.get(g, 0) for g in zip(*reversed(columns), strict=True)]
    return np.asarray(found, np.int32).reshape(tokens.shape)
