"""Reads rows as generation may: in random pieces, of which some bytes are taken back."""

import functools

import jax
import numpy as np


@functools.partial(jax.jit, static_argnums=0)
def read(reader, weights, cache, piece, count, kept):
  """Reads `count` ids of a piece [B, C] and keeps `kept`: logits [B, C, V] and the cache."""
  logits, pending = reader.read(weights, cache, piece, count)
  return logits, pending.commit(kept)


def read_in_pieces(reader, weights, text, chunk, room, seed=0):
  """Logits [B, n, V] of ids [B, n], and the cache after them, with room for so many."""
  rng, (rows, length) = np.random.default_rng(seed), text.shape
  cache, position = reader.init(rows, room, chunk), np.zeros(rows, int)
  logits = np.zeros((rows, length, reader.vocab_size), np.float32)
  while (position < length).any():
    count = np.minimum(rng.integers(0, chunk + 1, rows), length - position)
    kept = np.minimum(rng.integers(0, chunk + 1, rows), count)
    piece = rng.integers(0, reader.vocab_size, (rows, chunk)).astype(np.int32)
    places = [slice(begin, begin + n) for begin, n in zip(position, kept, strict=True)]
    for row, (place, n) in enumerate(zip(places, kept, strict=True)):
      piece[row, :n] = text[row, place]
    new, cache = read(reader, weights, cache, piece, count, kept)
    for row, (place, n) in enumerate(zip(places, kept, strict=True)):
      logits[row, place] = new[row, :n]
    position += kept
  return logits, cache
