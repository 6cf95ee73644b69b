"""Contexts of predictions: the bytes before, how many of them count, and their hashes.

Hashes are 32-bit arithmetic on numpy or jax arrays, since accelerators have no more.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from blt_jax import tokenizer

Array = Any  # np.ndarray or jax.Array

MAX_ORDER = 7  # longest context in bytes; it and the next byte fit in 64 bits
_FACTORS = (0x9E3779B1, 0x85EBCA77), (0xC2B2AE3D, 0x27D4EB2F)  # any large odd numbers
_CHECK_SHIFT, _ODD = np.uint32(16), np.uint32(1)


def context_windows(tokens: np.ndarray) -> np.ndarray:
  """The eight bytes that end at each id, the newest lowest: uint64 [n] of int32 [n]."""
  raw = (tokens - tokenizer.OFFSET).astype(np.uint8)
  padded = np.concatenate([np.zeros(7, np.uint8), raw])
  return np.ndarray(len(raw), ">u8", padded, strides=(1,)).astype(np.uint64)


def split_windows(windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The newest four bytes of windows, and the four before them: uint32 [n] each."""
  return windows.astype(np.uint32), (windows >> np.uint64(32)).astype(np.uint32)


def context_lengths(tokens: Array, reset_at_newline: bool) -> Array:
  """How many bytes the context at each id has, the id itself included.

  Args:
    tokens: int [..., n] ids.
    reset_at_newline: contexts begin anew after each newline, which ends the old one.

  Returns:
    int [..., n]; 0 at special ids, after which contexts begin anew.
  """
  xp = jnp if isinstance(tokens, jax.Array) else np
  position = xp.arange(1, tokens.shape[-1] + 1, dtype=np.int32)
  position = position.reshape((1,) * (tokens.ndim - 1) + (-1,))
  is_special = tokens < tokenizer.OFFSET
  ends = is_special | (tokens == tokenizer.NEWLINE_ID) if reset_at_newline else is_special
  last_end = xp.maximum.accumulate(position * ends, axis=-1)
  before = xp.concatenate([xp.zeros_like(last_end[..., :1]), last_end[..., :-1]], axis=-1)
  return (position - before) * ~is_special


class ContextHash:
  """Hashes contexts of one order.

  Factors are shifted so far that bytes which are not of the context drop out at the top.
  Contexts of one or two bytes never collide, given a place for each.
  """

  def __init__(self, order: int, buckets: int):
    """Takes the bytes of a context, and the entries of its table, a power of two."""
    self._needs_older = order > 4
    shifts = 8 * (4 - min(order, 4)), 8 * (8 - max(order, 4))
    self._index, self._check = (
      [np.uint32(f << s & 0xFFFFFFFF) for f, s in zip(factors, shifts, strict=True)]
      for factors in _FACTORS
    )
    self._shift = np.uint32(33 - buckets.bit_length())

  def __call__(self, newest: Array, older: Array) -> tuple[Array, Array]:
    """Hashes.

    Args:
      newest: uint32 [...], as from `split_windows`.
      older: uint32 [...].

    Returns:
      uint32 [...] places in the table, and [...] odd numbers below 2**16 to know entries
      by; an empty entry, 0, belongs to no context.
    """
    index, check = newest * self._index[0], newest * self._check[0]
    if self._needs_older:
      index, check = index + older * self._index[1], check + older * self._check[1]
    return index >> self._shift, check >> _CHECK_SHIFT | _ODD
