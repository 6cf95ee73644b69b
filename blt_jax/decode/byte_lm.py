"""A byte language model that reads on from a cache; also what entropies come from."""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from blt_jax import tokenizer
from blt_jax.decode import layers
from blt_jax.models.config import ByteLMConfig
from blt_jax.ops import losses, norm

NEWLINE_ID = ord("\n") + tokenizer.OFFSET


class EntropySource(Protocol):
  """What gives the entropies that patching needs, one or several bytes at a time.

  A source is hashable and holds no arrays: those are in its weights and its cache.
  """

  def init(self, batch_size: int, capacity: int, chunk: int) -> Any:
    """A cache of rows that have read nothing; see `ByteLMReader.init`."""

  def read(
    self, weights: Any, cache: Any, tokens: jax.Array, count: jax.Array
  ) -> tuple[jax.Array, jax.Array | None, Any]:
    """Reads ids [B, C], of which `count` [B] are real.

    Returns:
      float32 entropies [B, C] in nats of the predictions made at each; the logits
      [B, C, V] of these predictions, or None; and the cache, which `keep` must be
      called on before the next read.
    """

  def keep(self, cache: Any, count: jax.Array) -> Any:
    """Goes back to where only `count` [B] of the bytes last read had been read."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ByteLMCache:
  """What a byte language model remembers of each row."""

  position: jax.Array  # int32 [B], bytes read; [B, C + 1] inside a read
  document: jax.Array  # int32 [B], where the context began; likewise
  rings: list[layers.Ring]


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
      chunk: the most bytes of one read that `keep` may take back.
    """
    rings = layers.init_rings(self.config.transformer, batch_size, capacity, chunk, self.dtype)
    return ByteLMCache(jnp.zeros(batch_size, jnp.int32), jnp.zeros(batch_size, jnp.int32), rings)

  def read(
    self, weights: Any, cache: ByteLMCache, tokens: jax.Array, count: jax.Array
  ) -> tuple[jax.Array, ByteLMCache]:
    """Logits [B, C, V] of ids [B, C]; see `EntropySource.read`."""
    c = self.config
    position = cache.position[:, None] + jnp.arange(tokens.shape[1] + 1)
    ends = jnp.zeros(tokens.shape, bool)
    if c.document_masks:
      ends |= tokens == c.eos_id
    if self.reset_at_newline:
      ends |= tokens == NEWLINE_ID
    begun = jnp.where(ends, position[:, 1:], 0)
    begun = jnp.concatenate([cache.document[:, None], begun], axis=1)
    document = jax.lax.cummax(begun, axis=1)
    x = weights["embedding"][tokens].astype(self.dtype)
    span = layers.Span(cache.position, count, document[:, :-1])
    # Only differences of rotary positions matter; small ones are the more exact.
    rotary = span.positions - span.first if self.reset_at_newline else span.positions
    x, rings = layers.run_stack(
      weights["layers"], c.transformer, x, cache.rings, span, rotary
    )
    x = norm.rms_norm(x, weights["norm"], c.transformer.norm_epsilon)
    logits = layers.linear(x, weights["output"]).astype(jnp.float32)
    return logits, ByteLMCache(position, document, rings)

  def keep(self, cache: ByteLMCache, count: jax.Array) -> ByteLMCache:
    """See `EntropySource.keep`."""

    def pick(x):
      return jnp.take_along_axis(x, count[:, None], axis=1)[:, 0]

    return ByteLMCache(pick(cache.position), pick(cache.document), cache.rings)


@dataclasses.dataclass(frozen=True)
class EntropyModel(ByteLMReader):
  """An entropy model as an `EntropySource`."""

  def read(self, weights, cache, tokens, count):
    """See `EntropySource.read`."""
    logits, cache = super().read(weights, cache, tokens, count)
    return losses.entropy_nats(logits), logits, cache
