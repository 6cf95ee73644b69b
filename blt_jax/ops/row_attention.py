"""Attention of one row to intervals of its keys, a block of queries at a time: for CPUs.

The scores of a block stay in the cache. Where a block stands is known, save in the loop over
those that read alike; so the first ones, that have few keys before them, read no others.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from blt_jax.ops import head_attention, row_blocks


def attend_in_turn(
  query: jax.Array, key: jax.Array, value: jax.Array, first: jax.Array, window: int
) -> tuple[jax.Array, jax.Array]:
  """`attend` of rows one after the other.

  Args:
    query: [B, S, N, H].
    key: [B, K, G, H].
    value: [B, K, G, H].
    first: int32 [B, S].
    window: W.

  Returns:
    [B, S, N, H] in the dtype of `query`, and float32 [B, S, N, 1].
  """

  def run(row):
    query, key, value, first = row
    return attend(query, key, value, first, window)

  by_heads = head_attention.by_heads(query, key.shape[2])
  rows = by_heads, key.swapaxes(1, 2), value.swapaxes(1, 2), first
  output, logsumexps = jax.lax.map(run, rows)
  return head_attention.by_positions(output), head_attention.by_positions(logsumexps)


def differentiate_in_turn(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  first: jax.Array,
  output: jax.Array,
  logsumexps: jax.Array,
  cotangent: jax.Array,
  window: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The gradients of query, key and value, each like its own.

  Args:
    query: as of `attend_in_turn`, and so the next three.
    key: see above.
    value: see above.
    first: see above.
    output: [B, S, N, H], what `attend_in_turn` gave.
    logsumexps: float32 [B, S, N, 1], likewise.
    cotangent: [B, S, N, H], that of the output.
    window: W.
  """
  means = head_attention.means(output, cotangent)
  by_heads = functools.partial(head_attention.by_heads, groups=key.shape[2])
  keys, values = key.swapaxes(1, 2), value.swapaxes(1, 2)
  rows = by_heads(query), keys, values, first, *map(by_heads, (logsumexps, means, cotangent))
  differentiate_row = functools.partial(differentiate, window=window)
  of_query, *rest = jax.lax.map(lambda row: differentiate_row(*row), rows)
  of_key, of_value = (x.swapaxes(1, 2).astype(key.dtype) for x in rest)
  return head_attention.by_positions(of_query).astype(query.dtype), of_key, of_value


def attend(
  query: jax.Array, key: jax.Array, value: jax.Array, first: jax.Array, window: int
) -> tuple[jax.Array, jax.Array]:
  """Softmax attention of each query to an interval of keys that ends at its own.

  Args:
    query: [G, R, S, H], R heads for each head of keys; query i stands at key K - S + i.
    key: [G, K, H].
    value: [G, K, H].
    first: int32 [S], the first key that a query sees, at most W - 1 before its own.
    window: W.

  Returns:
    [G, R, S, H] in the dtype of `query`, and the logarithms of the sums of weights, float32
    [G, R, S, 1].
  """

  def run(block):
    rows, seen = block.rows(query), block.seen(first)
    output, logsumexps = head_attention.attend(rows, block.keys(key), block.keys(value), seen)
    return tuple(block.apart(x, query) for x in (output, logsumexps[..., None]))

  parts = []
  for r in row_blocks.runs_of(query.shape[2], key.shape[1], window):
    parts.append(
      row_blocks.merge(jax.lax.map(lambda i, r=r: run(r.block(i)), np.arange(r.length)))
    )
  outputs, logsumexps = zip(*parts, strict=True)
  return jnp.concatenate(outputs, axis=2), jnp.concatenate(logsumexps, axis=2)


def differentiate(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  first: jax.Array,
  logsumexps: jax.Array,
  means: jax.Array,
  cotangent: jax.Array,
  window: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The gradients of query, key and value, float32.

  Args:
    query: as of `attend`, and so the next three.
    key: see above.
    value: see above.
    first: see above.
    logsumexps: what `attend` gave.
    means: float32 [G, R, S, 1], see `head_attention`.
    cotangent: [G, R, S, H], that of the output.
    window: W.
  """

  def run(sums, block):
    of_query, *of_read = head_attention.differentiate(
      block.rows(query),
      block.keys(key),
      block.keys(value),
      block.seen(first),
      block.rows(logsumexps)[..., 0],
      block.rows(means),
      block.rows(cotangent),
    )
    sums = tuple(block.add(*pair) for pair in zip(sums, of_read, strict=True))
    return sums, block.apart(of_query, query)

  sums = (jnp.zeros(key.shape, jnp.float32),) * 2
  outputs = []
  for r in row_blocks.runs_of(query.shape[2], key.shape[1], window):

    def step(sums, i, r=r):
      return run(sums, r.block(i))

    sums, output = jax.lax.scan(step, sums, np.arange(r.length))
    outputs.append(row_blocks.merge(output))
  return jnp.concatenate(outputs, axis=2), *sums
