"""How a row of queries is cut into blocks that read few keys; see row_attention.py."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

BLOCKS_PER_WINDOW = 4  # a query reads W + W / 4 keys where it sees W
_LANES = 16  # a CPU takes longer for numbers of queries and keys that do not fill them


class Block(NamedTuple):
  """Queries, and the keys that they read.

  Attributes:
    start: its first query.
    size: Q, how many.
    begin: the first key that it reads.
    span: how many.
    offset: of the first query among keys, K - S.
  """

  start: int | jax.Array
  size: int
  begin: int | jax.Array
  span: int
  offset: int

  def rows(self, x: jax.Array) -> jax.Array:
    """Of [G, R, S, n] those of the block: [G, R * Q, n]."""
    rows = jax.lax.dynamic_slice_in_dim(x, self.start, self.size, axis=2)
    return rows.reshape(x.shape[0], -1, x.shape[-1])

  def apart(self, rows: jax.Array, query: jax.Array) -> jax.Array:
    """[G, R * Q, n] -> [G, R, Q, n], as `query` has it."""
    return rows.reshape(*query.shape[:2], self.size, -1)

  def keys(self, x: jax.Array) -> jax.Array:
    """Of [G, K, H] those that the block reads: [G, span, H]."""
    return jax.lax.dynamic_slice_in_dim(x, self.begin, self.span, axis=1)

  def add(self, x: jax.Array, part: jax.Array) -> jax.Array:
    """To `x` [G, K, H], at the keys that the block reads, adds `part` [G, span, H]."""
    return jax.lax.dynamic_update_slice_in_dim(x, self.keys(x) + part, self.begin, axis=1)

  def seen(self, first: jax.Array) -> jax.Array:
    """Which of these the queries see, from `first` [S] on: bool [Q, span]."""
    first = jax.lax.dynamic_slice_in_dim(first, self.start, self.size)
    keys = (self.begin + jnp.arange(self.span))[None]
    own = self.offset + self.start + jnp.arange(self.size)
    return (keys >= first[:, None]) & (keys <= own[:, None])


class Run(NamedTuple):
  """Blocks that read alike, each as many queries and keys after the one before as it has."""

  head: Block
  length: int

  def block(self, i: int | jax.Array) -> Block:
    """The one of number `i`, int [], from 0 on."""
    moved = i * self.head.size
    return self.head._replace(start=self.head.start + moved, begin=self.head.begin + moved)


def runs_of(seq_len: int, num_keys: int, window: int) -> list[Run]:
  """All blocks of a row, in order.

  Args:
    seq_len: S, queries.
    num_keys: K, of which the last S are the queries' own.
    window: W, keys that a query sees at most.
  """
  offset = num_keys - seq_len
  size = min(_filled(max(window // BLOCKS_PER_WINDOW, 1)), seq_len)
  longest = _filled(window - 1 + size)
  runs: list[Run] = []
  for start in range(0, seq_len, size):
    begin = max(offset + start + size - longest, 0)
    stop = min(start + size, seq_len)
    block = Block(start, stop - start, begin, offset + stop - begin, offset)
    if runs and (block.size, block.span) == (runs[-1].head.size, runs[-1].head.span):
      runs[-1] = runs[-1]._replace(length=runs[-1].length + 1)
    else:
      runs.append(Run(block, 1))
  return runs


def _filled(count: int) -> int:
  """No less, in whole lanes where there are several."""
  return count if count < 2 * _LANES else -(-count // _LANES) * _LANES


def merge(blocks: Any) -> Any:
  """Each array of a tree, [count, G, R, Q, n] -> [G, R, count * Q, n]."""

  def join(x):
    return jnp.moveaxis(x, 0, 2).reshape(*x.shape[1:3], -1, x.shape[-1])

  return jax.tree.map(join, blocks)
