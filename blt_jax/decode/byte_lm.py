"""A byte language model that reads on from a cache; also what entropies come from."""

import dataclasses

import jax
import jax.numpy as jnp

from blt_jax import tokenizer
from blt_jax.decode import layers
from blt_jax.decode.columns import running_max
from blt_jax.decode.reader import Pending, WithoutPatches
from blt_jax.decode.weights import ByteLMWeights
from blt_jax.models.config import ByteLMConfig
from blt_jax.ops import losses
from blt_jax.ops.decode_layers import norm_linear, retain


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
  """What a byte language model sees of each row."""

  position: jax.Array  # int32 [B], bytes read
  start: jax.Array  # int32 [B], where the context began


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ByteLMCache:
  """What a byte language model remembers of each row."""

  cursor: Context
  rings: list[layers.Ring]


@dataclasses.dataclass(frozen=True)
class ByteLMReader(WithoutPatches):
  """Reads bytes with a `ByteLM`.

  Attributes:
    config: the model.
    dtype: of weights, activations and cache.
    reset_at_newline: the context begins anew after each newline byte.
  """

  config: ByteLMConfig
  dtype: str
  reset_at_newline: bool = False

  @property
  def vocab_size(self) -> int:
    """See `Reader`."""
    return self.config.vocab_size

  def init(self, batch_size: int, capacity: int, chunk: int) -> ByteLMCache:
    """See `Reader`."""
    rings = layers.init_rings(self.config.transformer, batch_size, capacity, chunk, self.dtype)
    zero = jnp.zeros(batch_size, jnp.int32)
    return ByteLMCache(Context(zero, zero), rings)

  def read(
    self, weights: ByteLMWeights, cache: ByteLMCache, tokens: jax.Array, count: jax.Array
  ) -> tuple[jax.Array, Pending]:
    """See `Reader`."""
    x, pending = self.read_states(weights, cache, tokens, count)
    logits = norm_linear(x, weights.norm, self.config.transformer.norm_epsilon, weights.output)
    return retain(logits.astype(jnp.float32)), pending

  def read_states(
    self, weights: ByteLMWeights, cache: ByteLMCache, tokens: jax.Array, count: jax.Array
  ) -> tuple[jax.Array, Pending]:
    """As `read`, with states [B, C, D] before the last norm in place of logits."""
    c = self.config
    x = retain(weights.embedding[tokens].astype(self.dtype))  # [B, C, D]

    # Where the context of each byte begins.
    step = jnp.arange(tokens.shape[1] + 1)[None]
    position = cache.cursor.position[:, None] + step  # [B, C + 1]
    ends = jnp.zeros(tokens.shape, bool)
    if c.document_masks:
      ends |= tokens == c.eos_id
    if self.reset_at_newline:
      ends |= tokens == tokenizer.NEWLINE_ID
    begun = jnp.where(ends, position[:, 1:], 0)
    start = running_max(jnp.concatenate([cache.cursor.start[:, None], begun], axis=1))

    # Only differences of rotary positions matter; small ones are the more exact.
    span = layers.Span(cache.cursor.position, count, start[:, :-1])
    rotary = span.positions - span.first if self.reset_at_newline else span.positions
    x, rings = layers.run_stack(weights.layers, c.transformer, x, cache.rings, span, rotary)
    return x, Pending(ByteLMCache(cache.cursor, rings), Context(position, start))


@dataclasses.dataclass(frozen=True)
class EntropyModel:
  """A byte language model as an `EntropySource`."""

  reader: ByteLMReader
  gives_logits: bool = dataclasses.field(default=True, init=False)

  def init(self, batch_size: int, capacity: int, chunk: int) -> ByteLMCache:
    """See `EntropySource`."""
    return self.reader.init(batch_size, capacity, chunk)

  def read(
    self, weights: ByteLMWeights, cache: ByteLMCache, tokens: jax.Array, count: jax.Array
  ) -> tuple[jax.Array, jax.Array, Pending]:
    """See `EntropySource`."""
    logits, pending = self.reader.read(weights, cache, tokens, count)
    return losses.entropy_nats(logits), logits, pending
