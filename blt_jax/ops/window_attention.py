"""Attention inside a window, a block of queries at a time: the form of plain XLA.

A block reads the keys of its queries' windows and no others, so that scores stay in a CPU's
cache. The backward pass makes the scores again, from the logarithms of their sums.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

_MASKED = float(np.finfo(np.float32).min)
_BLOCKS_PER_WINDOW = 4  # a query reads W + W / 4 keys where it sees W


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
  blocks = _Blocks(query.shape, key.shape, window)
  queries, keys, values = blocks.split(query), blocks.pad(key), blocks.pad(value)
  firsts = blocks.split_first(first)

  def attend(block):
    scores = blocks.scores(queries, keys, firsts, block)  # [B, G, R * Q, K]
    largest = scores.max(axis=-1, keepdims=True)
    weights = jnp.exp(scores - largest)
    total = weights.sum(axis=-1, keepdims=True)
    mixed = _product("bgqk,bgkh->bgqh", weights.astype(value.dtype), blocks.cut(values, block))
    return (mixed / total).astype(query.dtype), (largest + jnp.log(total))[..., 0]

  outputs, logsumexps = jax.lax.map(attend, jnp.arange(blocks.count))
  output = blocks.join(outputs)
  return output, (query, key, value, first, outputs, logsumexps)


def _backward(window, residuals, cotangent):
  query, key, value, first, outputs, logsumexps = residuals
  blocks = _Blocks(query.shape, key.shape, window)
  queries, keys, values = blocks.split(query), blocks.pad(key), blocks.pad(value)
  firsts, cotangents = blocks.split_first(first), blocks.split(cotangent)
  scale = query.shape[-1] ** -0.5

  def differentiate(sums, block):
    key, value = blocks.cut(keys, block), blocks.cut(values, block)
    own, into = queries[block], cotangents[block]
    scores = blocks.scores(queries, keys, firsts, block)
    weights = jnp.exp(scores - logsumexps[block][..., None])
    from_values = _product("bgqh,bgkh->bgqk", into, value)
    mean = (into.astype(jnp.float32) * outputs[block]).sum(axis=-1, keepdims=True)
    of_scores = (weights * (from_values - mean) * scale).astype(query.dtype)
    of_key = _product("bgqk,bgqh->bgkh", of_scores, own)
    of_value = _product("bgqk,bgqh->bgkh", weights.astype(query.dtype), into)
    of_query = _product("bgqk,bgkh->bgqh", of_scores, key).astype(query.dtype)
    return (blocks.add(sums[0], of_key, block), blocks.add(sums[1], of_value, block)), of_query

  zeros = jnp.zeros(keys.shape, jnp.float32)
  (of_key, of_value), of_query = jax.lax.scan(
    differentiate, (zeros, zeros), jnp.arange(blocks.count)
  )
  of_key, of_value = (blocks.unpad(x).astype(key.dtype) for x in (of_key, of_value))
  return blocks.join(of_query), of_key, of_value, None


window_attention.defvjp(_forward, _backward)


class _Blocks:
  """How a row is cut: heads in front, so that a block's rows lie together in memory."""

  def __init__(self, query_shape, key_shape, window):
    self.batch, self.seq_len, self.heads, self.width = query_shape
    self.num_keys, self.groups = key_shape[1:3]
    self.size = max(min(window // _BLOCKS_PER_WINDOW, self.seq_len), 1)
    self.count = -(-self.seq_len // self.size)
    self.span = window - 1 + self.size  # keys that a block reads
    # So many stand before the first key, and after the last one, that all blocks read alike.
    self.before = max(window - 1 - (self.num_keys - self.seq_len), 0)
    self.skip = self.before + self.num_keys - self.seq_len - (window - 1)
    self.after = self.count * self.size - self.seq_len

  def split(self, x):
    """[B, S, N, H] -> [C, B, G, R * Q, H], of C blocks of Q queries."""
    x = jnp.pad(x, ((0, 0), (0, self.after), (0, 0), (0, 0)))
    x = x.reshape(self.batch, self.count, self.size, self.groups, -1, self.width)
    return x.transpose(1, 0, 3, 4, 2, 5).reshape(
      self.count, self.batch, self.groups, -1, self.width
    )

  def join(self, blocks):
    """[C, B, G, R * Q, H] -> [B, S, N, H]."""
    blocks = blocks.reshape(self.count, self.batch, self.groups, -1, self.size, self.width)
    x = blocks.transpose(1, 0, 4, 2, 3, 5)
    return x.reshape(self.batch, -1, self.heads, self.width)[:, : self.seq_len]

  def split_first(self, first):
    """[B, S] -> [C, B, Q]; queries that do not exist see their own key."""
    first = jnp.pad(first, ((0, 0), (0, self.after)))
    return first.reshape(self.batch, self.count, self.size).swapaxes(0, 1)

  def pad(self, keys):
    """[B, K, G, H] -> [B, G, before + K + after, H]."""
    keys = jnp.pad(keys, ((0, 0), (self.before, self.after), (0, 0), (0, 0)))
    return keys.swapaxes(1, 2)

  def unpad(self, keys):
    """The other way round."""
    return keys.swapaxes(1, 2)[:, self.before : self.before + self.num_keys]

  def cut(self, keys, block):
    """The keys [B, G, span, H] that a block reads."""
    return jax.lax.dynamic_slice_in_dim(keys, self.skip + block * self.size, self.span, axis=2)

  def add(self, keys, part, block):
    """Adds to the keys that a block reads."""
    start = self.skip + block * self.size
    there = jax.lax.dynamic_slice_in_dim(keys, start, self.span, axis=2) + part
    return jax.lax.dynamic_update_slice_in_dim(keys, there, start, axis=2)

  def scores(self, queries, keys, firsts, block):
    """Scaled products float32 [B, G, R * Q, span], masked where a query does not look."""
    scores = _product("bgqh,bgkh->bgqk", queries[block], self.cut(keys, block))
    here = np.arange(self.span)
    start = self.skip + block * self.size - self.before  # the block's first key
    seen = here[None, None] >= (firsts[block] - start)[..., None]  # [B, Q, span]
    seen &= (here <= np.arange(self.size)[:, None] + self.span - self.size)[None]
    shape = (self.batch, self.groups, -1, self.size, self.span)
    masked = jnp.where(seen[:, None, None], scores.reshape(shape) * self.width**-0.5, _MASKED)
    return masked.reshape(scores.shape)


def _product(letters: str, left: jax.Array, right: jax.Array) -> jax.Array:
  return jnp.einsum(letters, left, right, preferred_element_type=jnp.float32)
