"""Hashes of the n-grams of a picture: bytes of a pixel, and pixels around one."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from blt_jax.hashing.hashes import hash_ids, primes
from blt_jax.hashing.predecessors import Array, look_back


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

  def read(distance: int, exists: Array) -> Array:
    return xp.where(is_inside & exists, look_back(xp, tokens, distance, None), 0)

  is_last = byte % channels == channels - 1
  pixel = [read(n, is_last) for n in range(channels)]
  line = width * channels
  around = [
    read(channels, column > 0),
    read(line, row > 0),
    read(line + channels, (column > 0) & (row > 0)),
  ]
  return xp.stack([
    hash_ids(before, [len(before)], vocab_size, prime)[0]
    for prime in primes(num_functions)
    for before in (pixel, around)
  ])  # fmt: skip
