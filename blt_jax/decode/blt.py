"""A BLT that reads on from caches: bytes in, logits out, patches closed on the way."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from blt_jax.decode import blt_cache, blt_parts, layers
from blt_jax.decode.blt_cache import BLTCache
from blt_jax.decode.cursor import Cursor, advance_cursor
from blt_jax.decode.reader import EntropySource, Pending
from blt_jax.decode.weights import BLTWeights
from blt_jax.models.config import BLTConfig
from blt_jax.ops import decode_layers
from blt_jax.ops.decode_layers import take
from blt_jax.patching import PatchingConfig


class Known(NamedTuple):
  """What the entropy source has found of C bytes that the model is still to read."""

  entropies: jax.Array  # float32 [B, C], of the predictions made at them
  pending: Pending  # of the source
  to_encoder: jax.Array | None = None  # [B, C, D], what is added to the embeddings
  to_decoder: jax.Array | None = None  # [B, C, D], and to what the decoder reads of them


@dataclasses.dataclass(frozen=True)
class BLTReader:
  """Reads bytes with a `BLT`, patching them by itself.

  Attributes:
    config: the model.
    patching: how bytes are grouped.
    dtype: of weights, activations and caches.
    source: what gives entropies, for the entropy scheme.
    max_patches: M; None for as many as a row has bytes.
  """

  config: BLTConfig
  patching: PatchingConfig
  dtype: str
  source: EntropySource | None = None
  max_patches: int | None = None

  @property
  def vocab_size(self) -> int:
    """See `Reader`."""
    return self.config.vocab_size

  @property
  def max_length(self) -> None:
    """See `Reader`; patches may run out, see `max_patches`."""

  @property
  def drafters(self) -> tuple[str, ...]:
    """See `Reader`; a draft ends where entropies say that the next byte is uncertain."""
    if self.source is None:
      return ()
    return ("entropy", "decoder") if self.source.gives_logits else ("decoder",)

  def init(self, batch_size: int, capacity: int, chunk: int) -> BLTCache:
    """See `Reader`."""
    patches = self.max_patches or capacity + chunk  # never full
    source = self.source and self.source.init(batch_size, capacity, chunk)
    return blt_cache.init_cache(
      self.config, self.dtype, batch_size, capacity, patches, chunk, source
    )

  def read(
    self,
    weights: BLTWeights,
    cache: BLTCache,
    tokens: jax.Array,
    count: jax.Array,
    known: Known | None = None,
    num_latents: jax.Array | None = None,
  ) -> tuple[jax.Array, Pending]:
    """Reads the next bytes of each row; see `Reader`.

    Args:
      weights: of the model and its source.
      cache: of the rows.
      tokens: int [B, C].
      count: int [B], how many of the C are real.
      known: of these bytes, where the source has read them already.
      num_latents: int [B], to do without the latent transformer: bytes then read the
        newest of this many patches, whatever closes.
    """
    if known is None and num_latents is None and self._reads_ahead(tokens):
      return self._read_ahead(weights, cache, tokens, count)[:2]
    if known is None:
      known = self._read_source(weights, cache, tokens, count)
    return self._read(weights, cache, tokens, count, known, num_latents)[:2]

  def read_byte(
    self,
    weights: BLTWeights,
    cache: BLTCache,
    tokens: jax.Array,
    count: jax.Array,
    may_wait: jax.Array,
  ) -> tuple[jax.Array, Pending, jax.Array]:
    """Reads the next byte of each row, or of some: those that close a patch may wait.

    The latent transformer takes little longer for all rows than for one, so it is left
    aside until two thirds of the rows need it. Now and then rows must not wait, or one
    among others with long patches would do so for ever. See `Reader`.
    """
    if self._reads_ahead(tokens):
      return self._read_ahead(weights, cache, tokens, count, may_wait)
    known = self._read_source(weights, cache, tokens, count, is_again=cache.waits)
    return self._read(weights, cache, tokens, count, known, may_wait=may_wait)

  def _read_source(
    self,
    weights: BLTWeights,
    cache: BLTCache,
    tokens: jax.Array,
    count: jax.Array,
    is_again: jax.Array | None = None,
  ) -> Known | None:
    """Entropies of the next bytes; where `is_again` [B], the source has read them before."""
    if self.source is None:
      return None
    fresh = count if is_again is None else jnp.where(is_again, 0, count)
    entropies, _, pending = self.source.read(weights.source, cache.source, tokens, fresh)
    if is_again is not None:
      noted = take(cache.entropies, cache.cursor.position[:, None])
      entropies = jnp.where(is_again[:, None], noted, entropies)
    return Known(entropies, pending)

  def _read(
    self,
    weights: BLTWeights,
    cache: BLTCache,
    tokens: jax.Array,
    count: jax.Array,
    known: Known | None,
    num_latents: jax.Array | None = None,
    may_wait: jax.Array | None = None,
  ) -> tuple[jax.Array, Pending, jax.Array]:
    """Logits [B, C, V], what gives the next cache, and the bytes [B] that were read."""
    # Bytes to patches.
    cursor = cache.cursor
    entropies = jnp.zeros(tokens.shape) if known is None else known.entropies
    begins, trail = advance_cursor(
      self.patching, cursor, tokens, entropies, weights.lookup_table, cache.text.shape[1]
    )
    cache = blt_cache.write_bytes(self.config, cache, tokens, count, entropies, begins, trail)

    # The encoder; the latent transformer, where patches have closed.
    span = self._span(cursor, count, trail.document[:, :-1])
    added = known and known.to_encoder
    x, cache = blt_parts.encode_bytes(self.config, weights, cache, tokens, span, added)
    asked, newest = count, trail.patch[:, 1:]
    if num_latents is not None:
      newest = jnp.minimum(newest, num_latents[:, None])
    else:
      closed = jnp.take_along_axis(trail.patch, count[:, None], axis=1)[:, 0]
      if may_wait is not None:
        count = _without_waiting(count, closed > cursor.patch, may_wait)
        closed = jnp.where(count > 0, closed, cursor.patch)
      cache = blt_parts.add_closed_patches(
        self.config, weights, cache, closed, -(-tokens.shape[1] // 4)
      )

    # The decoder.
    if known is not None and known.to_decoder is not None:
      x = x + known.to_decoder
    span = dataclasses.replace(span, count=count)
    logits, cache = blt_parts.decode_bytes(self.config, weights, cache, x, newest - 1, span)
    cache = dataclasses.replace(cache, waits=count < asked)
    return logits, Pending(cache, trail, known and known.pending), count

  def _reads_ahead(self, tokens: jax.Array) -> bool:
    """Whether a GPU has room for the entropy model and the decoder at once."""
    is_model = self.source is not None and self.source.gives_logits
    return is_model and tokens.shape[1] == 1 and decode_layers.has_kernels()

  def _read_ahead(
    self,
    weights: BLTWeights,
    cache: BLTCache,
    tokens: jax.Array,
    count: jax.Array,
    may_wait: jax.Array | None = None,
  ) -> tuple[jax.Array, Pending, jax.Array]:
    """`_read` of one byte, none of whose models keeps a GPU busy.

    The decoder goes on as if no patch closed, beside the entropy model that finds out;
    where one did, it is run again, at once or when the row has waited: of a row that
    waits, no more than the encoder is.
    """
    cursor = cache.cursor
    waits = jnp.zeros_like(cache.waits) if may_wait is None else cache.waits
    span = self._span(cursor, count, cursor.document[:, None])

    # Entropies, and beside them the logits where no patch closes.
    def find_entropies():
      known = self._read_source(weights, cache, tokens, count, waits)
      assert known is not None  # as `_reads_ahead` has seen to
      return known.entropies, known.pending

    def read_on():
      x, new_cache = blt_parts.encode_bytes(self.config, weights, cache, tokens, span)
      fresh = dataclasses.replace(span, count=jnp.where(waits, 0, count))
      logits, new_cache = blt_parts.decode_bytes(
        self.config, weights, new_cache, x, cursor.patch[:, None] - 1, fresh
      )
      return logits, (x, new_cache)

    (entropies, source), (logits, (x, cache)) = decode_layers.overlap(find_entropies, read_on)

    # Bytes to patches.
    begins, trail = advance_cursor(self.patching, cursor, tokens, entropies)
    cache = blt_cache.write_bytes(self.config, cache, tokens, count, entropies, begins, trail)
    closes, asked = begins[:, 0] & (count > 0), count
    if may_wait is not None:
      count = _without_waiting(count, closes, may_wait)
      closes &= count > 0

    # The latent transformer and the decoder again, where a patch closes.
    new = closes.astype(jnp.int32)
    closing = dataclasses.replace(span, count=new)

    def read_again(cache):
      rings, patches = blt_parts.add_patches(
        self.config, weights, cache, cursor.patch, new, 1, cache.latent, cache.patches
      )
      cache = dataclasses.replace(cache, latent=rings, patches=patches)
      after, cache = blt_parts.decode_bytes(
        self.config, weights, cache, x, trail.patch[:, 1:] - 1, closing
      )
      return jnp.where(closes[:, None, None], after, logits), cache

    def leave(cache):
      return logits, cache

    logits, cache = jax.lax.cond(jnp.any(closes), read_again, leave, cache)
    cache = dataclasses.replace(cache, waits=count < asked)
    return logits, Pending(cache, trail, source), count

  def patches_left(self, cache: BLTCache) -> jax.Array:
    """See `Reader`."""
    return cache.patches[0].shape[1] - cache.cursor.patch

  def patches(self, cache: BLTCache) -> tuple[jax.Array, jax.Array | None]:
    """See `Reader`."""
    number = jnp.arange(cache.starts.shape[1])[None]
    is_begun = number <= cache.cursor.patch[:, None]  # [B, M + 2]
    at = jnp.where(is_begun, cache.starts, cache.text.shape[1])
    starts = jnp.zeros(cache.text.shape, bool)
    starts = jax.vmap(lambda row, at: row.at[at].set(True, mode="drop"))(starts, at)
    return starts, cache.entropies if self.source else None

  def _span(self, cursor: Cursor, count: jax.Array, first: jax.Array) -> layers.Span:
    """The new bytes of each row; `first` [B, C] is where their documents begin."""
    if not self.config.document_masks:
      first = jnp.zeros_like(first)
    return layers.Span(cursor.position, count, first)


def _without_waiting(count: jax.Array, closes: jax.Array, may_wait: jax.Array) -> jax.Array:
  """Bytes [B] that rows read now: 0 where a patch closes, if too few others close one."""
  has_to = may_wait & (3 * jnp.sum(closes) < 2 * jnp.sum(count > 0))
  return jnp.where(has_to & closes, 0, count)
