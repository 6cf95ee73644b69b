"""Rolling polynomial hashes of byte n-grams.

Reference: Meta `model/blt.py`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from blt_jax.hashing.predecessors import Array, check_documents, look_back

PRIMES = (
    1000000007, 5915587277, 1500450271, 3267000013, 5754853343, 4093082899,
    9576890767, 3628273133, 2860486313, 5463458053, 3367900313,
)  # fmt: skip


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
  check_documents(tokens, document_ids)
  xp = jnp if isinstance(tokens, jax.Array) else np
  before = [look_back(xp, tokens, n, document_ids) for n in range(max(sizes))]
  ids = [hash_ids(before, sizes, vocab_size, prime) for prime in primes(num_functions)]
  return xp.stack([one for some in ids for one in some])


def primes(count: int) -> list[int]:
  """That of each hash function."""
  return [PRIMES[i % len(PRIMES)] for i in range(count)]


def hash_ids(
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
