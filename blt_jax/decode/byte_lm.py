"""A byte language model that reads on from a cache; also what entropies come from."""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from blt_jax import tokenizer
from blt_jax.decode import layers
from blt_jax.decode.columns import pick, running_max
from blt_jax.models.config import ByteLMConfig
from blt_jax.ops import losses
from blt_jax.ops.triton import call as gpu_call


class EntropySource(Protocol):
  """What gives the entropies that patching needs, one or several bytes at a time.

  A source is hashable and holds no arrays: those are in its weights and its cache.
  """

  def init(self, batch_size: int, capacity: int, chunk: int) -> Any:
    """A cache of rows that have read nothing; see `ByteLMReader.init`.

    It is a dataclass pytree with a field `cursor`, a tree of arrays [B, ...]. Going back
    to an older cursor must be enough to take back up to `chunk` bytes.
    """

  def read(
    self, weights: Any, cache: Any, tokens: jax.Array, count: jax.Array
  ) -> tuple[jax.Array, jax.Array | None, Any]:
    """Reads ids [B, C], of which `count` [B] are real.

    Returns:
      float32 entropies [B, C] in nats of the predictions made at each; the logits
      [B, C, V] of these predictions, or None; and the cache, whose cursor now has the
      shape [B, C + 1, ...]: before the read and after each of the C bytes, real or not,
      since a byte that has been read already is asked for with a count of 0.
    """


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
  """What a byte language model sees of each row, int32 [B]; [B, C + 1] inside a read."""

  position: jax.Array  # bytes read
  start: jax.Array  # where the context began


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ByteLMCache:
  """What a byte language model remembers of each row."""

  cursor: Context
  rings: list[layers.Ring]


def rewind(cache: Any, count: jax.Array) -> Any:
  """Goes back to where only `count` [B] of the bytes last read had been read.

  Args:
    cache: of a reader or an entropy source, as its `read` gave it.
    count: int [B], at most what was real in the read, or 1 of a byte that waited.
  """
  changes = {"cursor": jax.tree.map(lambda x: pick(x, count), cache.cursor)}
  if getattr(cache, "source", None) is not None:
    changes["source"] = rewind(cache.source, count)
  return dataclasses.replace(cache, **changes)


@dataclasses.dataclass(frozen=True)
class ByteLMReader:
  """Reads bytes with a `ByteLM`.

  Attributes:
    config: the model.
    dtype: of weights, activations and cache.
    reset_at_newline: the context begins anew after each newline byte.
  """

  config: ByteLMConfig
  dtype: str
  reset_at_newline: bool = False

  def init(self, batch_size: int, capacity: int, chunk: int) -> ByteLMCache:
    """A cache of rows that have read nothing.

    Args:
      batch_size: B.
      capacity: the most bytes that a row will have.
      chunk: the most bytes of one read that `rewind` may take back.
    """
    rings = layers.init_rings(self.config.transformer, batch_size, capacity, chunk, self.dtype)
    zero = jnp.zeros(batch_size, jnp.int32)
    return ByteLMCache(Context(zero, zero), rings)

  def read(
    self, weights: Any, cache: ByteLMCache, tokens: jax.Array, count: jax.Array
  ) -> tuple[jax.Array, ByteLMCache]:
    """Logits [B, C, V] of ids [B, C]; see `EntropySource.read`."""
    c = self.config
    position = cache.cursor.position[:, None] + jnp.arange(tokens.shape[1] + 1)
    ends = jnp.zeros(tokens.shape, bool)
    if c.document_masks:
      ends |= tokens == c.eos_id
    if self.reset_at_newline:
      ends |= tokens == tokenizer.NEWLINE_ID
    begun = jnp.where(ends, position[:, 1:], 0)
    begun = jnp.concatenate([cache.cursor.start[:, None], begun], axis=1)
    start = running_max(begun)
    x = gpu_call.keep(weights["embedding"][tokens].astype(self.dtype))
    span = layers.Span(cache.cursor.position, count, start[:, :-1])
    # Only differences of rotary positions matter; small ones are the more exact.
    rotary = span.positions - span.first if self.reset_at_newline else span.positions
    x, rings = layers.run_stack(weights["layers"], c.transformer, x, cache.rings, span, rotary)
    logits = layers.norm_linear(
      x, weights["norm"], c.transformer.norm_epsilon, weights["output"]
    )
    logits = gpu_call.keep(logits.astype(jnp.float32))
    return logits, ByteLMCache(Context(position, start), rings)

  def read_byte(
    self,
    weights: Any,
    cache: ByteLMCache,
    tokens: jax.Array,
    count: jax.Array,
    may_wait: jax.Array,
  ) -> tuple[jax.Array, ByteLMCache, jax.Array]:
    """As `BLTReader.read_byte`; no row waits here."""
    del may_wait
    return *self.read(weights, cache, tokens, count), count

  def patches_left(self, cache: ByteLMCache) -> jax.Array:
    """As `BLTReader.patches_left`: as many as there can be bytes."""
    return jnp.full(cache.cursor.position.shape, np.iinfo(np.int32).max)


@dataclasses.dataclass(frozen=True)
class EntropyModel:
  """A byte language model as an `EntropySource`."""

  reader: ByteLMReader

  def init(self, batch_size: int, capacity: int, chunk: int) -> ByteLMCache:
    """See `EntropySource`."""
    return self.reader.init(batch_size, capacity, chunk)

  def read(
    self, weights: Any, cache: ByteLMCache, tokens: jax.Array, count: jax.Array
  ) -> tuple[jax.Array, jax.Array, ByteLMCache]:
    """See `EntropySource`."""
    logits, cache = self.reader.read(weights, cache, tokens, count)
    return losses.entropy_nats(logits), logits, cache
