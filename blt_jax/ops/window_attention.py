"""Attention inside a window, a block of queries at a time: the form of plain XLA.

A block reads the keys of its queries' windows and few others.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from blt_jax.ops import head_attention, row_attention, row_blocks


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def window_attention(
  query: jax.Array, key: jax.Array, value: jax.Array, first: jax.Array, window: int
) -> jax.Array:
  """Softmax attention of each query to an interval of keys that ends at its own.

  Args:
    query: [B, S, N, H]; query i stands at key K - S + i.
    key: [B, K, G, H]; each of the G heads serves N / G adjacent query heads.
    value: [B, K, G, H].
    first: int32 [B, S], the first key that a query sees, at most W - 1 before its own.
    window: W.

  Returns:
    [B, S, N, H] in the dtype of `query`; softmax in float32.
  """
  return _forward(query, key, value, first, window)[0]


def _forward(query, key, value, first, window):
  inputs = query, key, value, first
  outputs = jax.lax.platform_dependent(
    *inputs,
    cpu=functools.partial(row_attention.attend_in_turn, window=window),
    default=functools.partial(_attend_blocks, window=window),
  )
  output, logsumexps = (checkpoint_name(x, head_attention.SAVED_AS) for x in outputs)
  return output, (*inputs, output, logsumexps)


def _attend_blocks(query, key, value, first, window):
  """The output, and logarithms of sums of weights, float32 [B, S, N, 1]."""
  blocks = _Blocks(query.shape, key.shape, window)
  queries, keys, values = blocks.split(query), key.swapaxes(1, 2), value.swapaxes(1, 2)
  firsts = blocks.split_first(first)

  def attend(block):
    seen = blocks.seen(firsts[block], block)
    read = blocks.cut(keys, block), blocks.cut(values, block)
    return head_attention.attend(queries[block], *read, seen)

  outputs, logsumexps = jax.lax.map(attend, jnp.arange(blocks.count))
  return blocks.join(outputs), blocks.join(logsumexps[..., None])


def _backward(window, residuals, cotangent):
  gradients = jax.lax.platform_dependent(
    *residuals,
    cotangent,
    cpu=functools.partial(row_attention.differentiate_in_turn, window=window),
    default=functools.partial(_differentiate_blocks, window=window),
  )
  return *gradients, None


def _differentiate_blocks(query, key, value, first, output, logsumexps, cotangent, window):
  """The gradients of query, key and value."""
  blocks = _Blocks(query.shape, key.shape, window)
  queries, keys, values = blocks.split(query), key.swapaxes(1, 2), value.swapaxes(1, 2)
  firsts, cotangents = blocks.split_first(first), blocks.split(cotangent)
  means = blocks.split(head_attention.means(output, cotangent))
  logsumexps = blocks.split(logsumexps)

  def differentiate(sums, block):
    of_query, *of_read = head_attention.differentiate(
      queries[block],
      blocks.cut(keys, block),
      blocks.cut(values, block),
      blocks.seen(firsts[block], block),
      logsumexps[block, ..., 0],
      means[block],
      cotangents[block],
    )
    sums = tuple(blocks.add(*pair, block) for pair in zip(sums, of_read, strict=True))
    return sums, of_query.astype(query.dtype)

  zeros = jnp.zeros(keys.shape, jnp.float32)
  (of_key, of_value), of_query = jax.lax.scan(
    differentiate, (zeros, zeros), jnp.arange(blocks.count)
  )
  of_key, of_value = (x.swapaxes(1, 2).astype(key.dtype) for x in (of_key, of_value))
  return blocks.join(of_query), of_key, of_value


window_attention.defvjp(_forward, _backward)


class _Blocks:
  """How a row is cut: heads in front, so that a block's rows lie together in memory."""

  def __init__(self, query_shape, key_shape, window):
    self.batch, self.seq_len, self.heads, _ = query_shape
    self.num_keys, self.groups = key_shape[1:3]
    self._offset = self.num_keys - self.seq_len  # of the first query among keys
    self.size = max(min(window // row_blocks.BLOCKS_PER_WINDOW, self.seq_len), 1)
    self.count = -(-self.seq_len // self.size)
    # Keys that a block reads; where they would begin before the first, more of those that
    # follow, so that all blocks read alike.
    self.span = min(window - 1 + self.size, self.num_keys)
    self.after = self.count * self.size - self.seq_len

  def split(self, x):
    """[B, S, N, n] -> [C, B, G, R * Q, n], of C blocks of Q queries."""
    x = jnp.pad(x, ((0, 0), (0, self.after), (0, 0), (0, 0)))
    x = x.reshape(self.batch, self.count, self.size, self.groups, -1, x.shape[-1])
    x = x.transpose(1, 0, 3, 4, 2, 5)
    return x.reshape(self.count, self.batch, self.groups, -1, x.shape[-1])

  def join(self, blocks):
    """[C, B, G, R * Q, n] -> [B, S, N, n]."""
    width = blocks.shape[-1]
    blocks = blocks.reshape(self.count, self.batch, self.groups, -1, self.size, width)
    x = blocks.transpose(1, 0, 4, 2, 3, 5)
    return x.reshape(self.batch, -1, self.heads, width)[:, : self.seq_len]

  def split_first(self, first):
    """[B, S] -> [C, B, Q]; queries that do not exist see all keys."""
    first = jnp.pad(first, ((0, 0), (0, self.after)))
    return first.reshape(self.batch, self.count, self.size).swapaxes(0, 1)

  def cut(self, keys, block):
    """Of keys [B, G, K, H], those [B, G, span, H] that a block reads."""
    return jax.lax.dynamic_slice_in_dim(keys, self._start(block), self.span, axis=2)

  def add(self, keys, part, block):
    """Adds to the keys that a block reads."""
    there = self.cut(keys, block) + part
    return jax.lax.dynamic_update_slice_in_dim(keys, there, self._start(block), axis=2)

  def seen(self, firsts, block):
    """Which of these the queries of a block see, from `firsts` [B, Q] on: bool [B, Q, span]."""
    own = self._offset + block * self.size + np.arange(self.size)
    keys = (self._start(block) + np.arange(self.span))[None]
    return (keys[None] >= firsts[..., None]) & (keys <= own[:, None])[None]

  def _start(self, block):
    end = self._offset + (block + 1) * self.size
    return jnp.clip(end - self.span, 0, self.num_keys - self.span)
