"""What generation and scoring read from: the protocol, and a slow reader for any model.

A reader takes in bytes and gives the logits of the bytes after them. It is hashable and
holds no arrays, since compiled programs take it as a constant; arrays are in its weights
and in its caches, both of them pytrees.
"""

import dataclasses
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from blt_jax.decode.columns import pick
from blt_jax.ops.ring_attention import write_ring


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pending:
  """Bytes that have been read and of which some may still be taken back.

  Attributes:
    cache: the cache with what was written for them, its `cursor` as before the read.
    trail: what the cursor would be before the read and after each of its C bytes; arrays
      [B, C + 1, ...] where those of `cursor` are [B, ...].
    source: likewise of the entropy source whose cache is `cache.source`, or None.
  """

  cache: Any
  trail: Any
  source: "Pending | None" = None

  def commit(self, count: jax.Array) -> Any:
    """The cache of rows that have read the first `count` [B] of the bytes, the rest not.

    Args:
      count: int [B], at most what was real in the read, or 1 of a byte that waited.
    """
    changes = {"cursor": jax.tree.map(lambda x: pick(x, count), self.trail)}
    if self.source is not None:
      changes["source"] = self.source.commit(count)
    return dataclasses.replace(self.cache, **changes)


class Reader(Protocol):
  """What the loop reads from.

  A cache is a frozen dataclass and a pytree, valid whenever it exists. It has a field
  `cursor`, a tree of arrays [B, ...] that say where each row stands: putting back an older
  one takes back what was read since, `chunk` bytes at most.
  """

  @property
  def dtype(self) -> str:
    """Of activations; products of "float32" are those of float32 on every device."""

  @property
  def vocab_size(self) -> int:
    """V."""

  @property
  def max_patches(self) -> int | None:
    """Patches that a row has room for, or None for as many as it has bytes."""

  @property
  def max_length(self) -> int | None:
    """Ids that a row may have, BOS included, or None for any number."""

  @property
  def drafters(self) -> tuple[str, ...]:
    """Who can draft bytes for it, of `drafting.Drafting.by`."""

  def init(self, batch_size: int, capacity: int, chunk: int) -> Any:
    """A cache of rows that have read nothing.

    Args:
      batch_size: B.
      capacity: T, the most bytes that a row will have.
      chunk: the most bytes of one read that may be taken back.
    """

  def read(
    self, weights: Any, cache: Any, tokens: jax.Array, count: jax.Array
  ) -> tuple[jax.Array, Pending]:
    """Reads the next bytes of each row.

    Args:
      weights: of the reader.
      cache: of the rows.
      tokens: int [B, C].
      count: int [B], how many of the C are real.

    Returns:
      float32 logits [B, C, V] of the byte after each; and what gives the next cache.
    """

  def read_byte(
    self,
    weights: Any,
    cache: Any,
    tokens: jax.Array,
    count: jax.Array,
    may_wait: jax.Array,
  ) -> tuple[jax.Array, Pending, jax.Array]:
    """Reads the next byte of each row, or of some: others may have to wait.

    Args:
      weights: of the reader.
      cache: of the rows.
      tokens: int [B, 1].
      count: int [B], 0 for rows that read nothing.
      may_wait: bool [], whether rows may wait.

    Returns:
      As `read`; and int [B], the bytes read: where 0, the row has to ask again, for the
      same byte.
    """

  def patches_left(self, cache: Any) -> jax.Array:
    """How many patches each row has room for, int [B]; < 0 where some found none."""

  def patches(self, cache: Any) -> tuple[jax.Array | None, jax.Array | None]:
    """How the bytes of each row were patched.

    Returns:
      bool [B, T], whether a byte begins a patch; and float32 [B, T], the entropy in nats
      of the prediction made at it. None for what there is not.
    """


class EntropySource(Protocol):
  """What gives the entropies that patching needs, one or several bytes at a time.

  Its caches are as those of a `Reader`.
  """

  @property
  def gives_logits(self) -> bool:
    """Whether it is a model, which can draft bytes; a table cannot."""

  def init(self, batch_size: int, capacity: int, chunk: int) -> Any:
    """As `Reader.init`."""

  def read(
    self, weights: Any, cache: Any, tokens: jax.Array, count: jax.Array
  ) -> tuple[jax.Array, jax.Array | None, Pending]:
    """Reads ids [B, C], of which `count` [B] are real.

    Returns:
      float32 entropies [B, C] in nats of the predictions made at each; the logits
      [B, C, V] of these predictions, or None; and what gives the next cache. Its trail goes
      on through bytes that are not real, since one that has been read already is asked for
      again with a count of 0.
    """


class WithoutPatches:
  """The part of a `Reader` that is about patches, for models that have none to tell of."""

  max_patches: int | None = None
  max_length: int | None = None
  drafters: tuple[str, ...] = ()

  def read_byte(
    self: Any,
    weights: Any,
    cache: Any,
    tokens: jax.Array,
    count: jax.Array,
    may_wait: jax.Array,
  ) -> tuple[jax.Array, Pending, jax.Array]:
    """See `Reader`; no row waits."""
    del may_wait
    return *self.read(weights, cache, tokens, count), count

  def patches_left(self, cache: Any) -> jax.Array:
    """See `Reader`: more than there can be bytes."""
    rows = jax.tree.leaves(cache.cursor)[0].shape[:1]
    return jnp.full(rows, jnp.iinfo(jnp.int32).max)

  def patches(self, cache: Any) -> tuple[None, None]:
    """See `Reader`."""
    del cache
    return None, None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TextCache:
  """The bytes of each row."""

  cursor: jax.Array  # int32 [B], bytes read
  text: jax.Array  # int32 [B, T]


@dataclasses.dataclass(frozen=True)
class UncachedReader(WithoutPatches):
  """Reads with any model, which runs over all T bytes of a row at each read.

  Slow, but exact for every causal model from the day it trains: what follows the bytes
  that have been read is 0, and changes no logits before it. Weights are the parameters.

  Attributes:
    module: gives logits [B, T, V] of ids [B, T].
    vocab_size: V.
    dtype: see `Reader`.
  """

  module: nn.Module
  vocab_size: int
  dtype: str = "float32"

  def init(self, batch_size: int, capacity: int, chunk: int) -> TextCache:
    """See `Reader`."""
    del chunk
    text = jnp.zeros((batch_size, capacity), jnp.int32)
    return TextCache(jnp.zeros(batch_size, jnp.int32), text)

  def read(
    self, weights: Any, cache: TextCache, tokens: jax.Array, count: jax.Array
  ) -> tuple[jax.Array, Pending]:
    """See `Reader`."""
    text = write_ring(cache.text, tokens, cache.cursor, count)
    trail = cache.cursor[:, None] + jnp.arange(tokens.shape[1] + 1)[None]
    end = (cache.cursor + count)[:, None]
    text = jnp.where(jnp.arange(text.shape[1])[None] < end, text, 0)
    logits = self.module.apply({"params": weights}, text)
    at = jnp.minimum(trail[:, :-1], text.shape[1] - 1)
    here = jnp.take_along_axis(logits, at[..., None], axis=1)
    return here.astype(jnp.float32), Pending(TextCache(cache.cursor, text), trail)
