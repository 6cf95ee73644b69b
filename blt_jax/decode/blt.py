"""A BLT that reads on from caches: bytes in, logits out, patches closed on the way."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from blt_jax import hashing
from blt_jax.decode import blt_cache, layers
from blt_jax.decode.blt_cache import BLTCache
from blt_jax.decode.byte_lm import EntropySource
from blt_jax.decode.cursor import advance_cursor
from blt_jax.decode.patch_encoder import encode_patches
from blt_jax.models.config import BLTConfig
from blt_jax.ops.ring_attention import write_ring
from blt_jax.ops.triton import call as gpu_call
from blt_jax.patching import PatchingConfig


@dataclasses.dataclass(frozen=True)
class BLTReader:
  """Reads bytes with a `BLT`, patching them by itself.

  Weights are a dict: `model`, and `source` or `lookup_table` where the rule wants them.

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

  def init(self, batch_size: int, capacity: int, chunk: int) -> BLTCache:
    """Caches of rows that have read nothing; see `ByteLMReader.init`."""
    patches = self.max_patches or capacity + chunk  # never full
    source = self.source and self.source.init(batch_size, capacity, chunk)
    return blt_cache.init_cache(
      self.config, self.dtype, batch_size, capacity, patches, chunk, source
    )

  def read(
    self,
    weights: Any,
    cache: BLTCache,
    tokens: jax.Array,
    count: jax.Array,
    entropies: jax.Array | None = None,
    num_latents: jax.Array | None = None,
  ) -> tuple[jax.Array, BLTCache]:
    """Reads the next bytes of each row.

    Args:
      weights: see the class.
      cache: as `init` or `rewind` gave it.
      tokens: int [B, C].
      count: int [B], how many of the C are real.
      entropies: float32 [B, C] where the source has read these bytes already.
      num_latents: int [B], to do without the latent transformer: bytes then read the
        newest of this many patches, whatever closes.

    Returns:
      float32 logits [B, C, V]; and the cache, which `rewind` must be called on before
      the next read.
    """
    return self._read(weights, cache, tokens, count, entropies, num_latents)[:2]

  def read_byte(
    self,
    weights: Any,
    cache: BLTCache,
    tokens: jax.Array,
    count: jax.Array,
    may_wait: jax.Array,
  ) -> tuple[jax.Array, BLTCache, jax.Array]:
    """Reads the next byte of each row, or of some: those that close a patch may wait.

    The latent transformer takes little longer for all rows than for one, so it is left
    aside until two thirds of the rows need it.

    Args:
      weights: see the class.
      cache: as `init` or `rewind` gave it.
      tokens: int [B, 1].
      count: int [B], 0 for rows that read nothing.
      may_wait: bool [], whether rows may; now and then they must not, or a row among
        others with long patches would wait for ever.

    Returns:
      As `read`; and int [B], the bytes read: where 0, the row has to ask again, for the
      same byte.
    """
    return self._read(weights, cache, tokens, count, may_wait=may_wait)

  def _read(
    self, weights, cache, tokens, count, entropies=None, num_latents=None, may_wait=None
  ):
    cursor = cache.cursor
    if self.source and entropies is None:
      waits = cache.waits & (may_wait is not None)  # `read` asks for nothing again
      fresh = jnp.where(waits, 0, count)
      with gpu_call.recorded() as temporaries:
        entropies, _, source = self.source.read(weights["source"], cache.source, tokens, fresh)
      known = layers.take(cache.entropies, cursor.position[:, None])
      entropies = jnp.where(waits[:, None], known, entropies)
      cache = dataclasses.replace(cache, source=source, waits=waits)
      if temporaries and tokens.shape[1] == 1 and num_latents is None:
        return self._read_ahead(weights, cache, tokens, count, entropies, temporaries, may_wait)
    if entropies is None:
      entropies = jnp.zeros(tokens.shape)
    begins, trail = advance_cursor(
      self.patching, cursor, tokens, entropies, weights.get("lookup_table"), cache.text.shape[1]
    )
    cache = blt_cache.note(self.config, cache, tokens, count, entropies, begins, trail)
    span = self._span(cursor, count, trail.document[:, :-1])
    x, cache = self._encode(weights["model"], cache, tokens, span)
    asked = count
    if num_latents is None:
      closed = jnp.take_along_axis(trail.patch, count[:, None], axis=1)[:, 0]
      if may_wait is not None:
        count = _without_waiting(count, closed > cursor.patch, may_wait)
        closed = jnp.where(count > 0, closed, cursor.patch)
      cache = self._think(weights["model"], cache, closed, -(-tokens.shape[1] // 4))
      ids = trail.patch[:, 1:] - 1
    else:
      ids = jnp.minimum(trail.patch[:, 1:], num_latents[:, None]) - 1
    span = dataclasses.replace(span, count=count)
    logits, cache = self._decode(weights["model"], cache, x, ids, span)
    return logits, dataclasses.replace(cache, cursor=trail, waits=count < asked), count

  def _read_ahead(self, weights, cache, tokens, count, entropies, temporaries, may_wait):
    """`_read` of one byte, none of whose models keeps a GPU busy.

    The decoder goes on as if no patch closed, beside the entropy model that finds out;
    where one did, it is run again, at once or when the row has waited: of a row that
    waits, no more than the encoder is.
    """
    model, cursor = weights["model"], cache.cursor
    span = self._span(cursor, count, cursor.document[:, None])
    x, cache = self._encode(model, cache, tokens, span)
    fresh = dataclasses.replace(span, count=jnp.where(cache.waits, 0, count))
    logits, cache = self._decode(model, cache, x, cursor.patch[:, None] - 1, fresh)
    entropies = gpu_call.after(entropies, [*temporaries, logits])
    begins, trail = advance_cursor(self.patching, cursor, tokens, entropies)
    cache = blt_cache.note(self.config, cache, tokens, count, entropies, begins, trail)

    closes, asked = begins[:, 0] & (count > 0), count
    if may_wait is not None:
      count = _without_waiting(count, closes, may_wait)
      closes &= count > 0
    new = closes.astype(jnp.int32)

    def again(cache):
      rings, patches = self._add_patches(
        model, cache, cursor.patch, new, 1, cache.latent, cache.patches
      )
      cache = dataclasses.replace(cache, latent=rings, patches=patches)
      closing = dataclasses.replace(span, count=new)
      after, cache = self._decode(model, cache, x, trail.patch[:, 1:] - 1, closing)
      return jnp.where(closes[:, None, None], after, logits), cache

    logits, cache = jax.lax.cond(jnp.any(closes), again, lambda cache: (logits, cache), cache)
    return logits, dataclasses.replace(cache, cursor=trail, waits=count < asked), count

  def patches_left(self, cache: BLTCache) -> jax.Array:
    """How many patches each row has room for, int [B]; < 0 where some found none."""
    return cache.patches[0].shape[1] - cache.cursor.patch

  def _span(self, cursor, count, first):
    if not self.config.document_masks:
      first = jnp.zeros_like(first)
    return layers.Span(cursor.position, count, first)

  def _encode(self, weights, cache, tokens, span):
    """Byte states [B, C, D] of the encoder; notes what patches will read of them."""
    c = self.config
    x = embed(weights, c, cache.text, tokens, span.position).astype(self.dtype)
    angles = layers.rope_angles(c.encoder, span.positions)
    rings, states = [], []
    for weight, ring in zip(weights["encoder"]["layers"], cache.encoder, strict=True):
      x, ring = layers.run_block(weight, c.encoder, x, ring, span, angles)
      rings.append(ring)
      states.append(x)
    crosses = weights["encoder"].get("cross", [])
    read = [
      layers.cross_keys(w, c.encoder_cross, c.encoder.norm_epsilon, x)
      for w, x in zip(crosses, states[len(states) - len(crosses) :], strict=True)
    ]
    pooled = states[-max(len(crosses), 1) :][: len(cache.states)]

    def put(buffers, new):
      return [
        write_ring(buffer, values, span.position, span.count)
        for buffer, values in zip(buffers, new, strict=True)
      ]

    return x, dataclasses.replace(
      cache,
      encoder=rings,
      states=put(cache.states, pooled),
      byte_keys=put(cache.byte_keys, read),
    )

  def _think(self, weights, cache, closed, block):
    """Takes in the patches up to number `closed` [B], `block` of each row at a time."""
    new = closed - cache.cursor.patch

    def more(carry):
      return carry[0] < jnp.max(new)

    def step(carry):
      done, *states = carry
      position, count = cache.cursor.patch + done, jnp.clip(new - done, 0, block)
      states = self._add_patches(weights, cache, position, count, block, *states)
      return done + block, *states

    carry = (jnp.zeros((), jnp.int32), cache.latent, cache.patches)
    _, rings, patches = jax.lax.while_loop(more, step, carry)
    return dataclasses.replace(cache, latent=rings, patches=patches)

  def _add_patches(self, weights, cache, position, count, block, rings, patches):
    """Takes in `count` [B] patches from `position` [B] on, `block` at most."""
    c = self.config
    ids = position[:, None] + np.arange(block)
    real = np.arange(block) < count[:, None]
    x = self._encode_patches(weights, cache, ids, real)
    if "latent_projection" in weights:
      x = layers.linear(x, weights["latent_projection"])
    span = layers.Span(position, count, layers.take(cache.latent_first, ids))
    x, rings = layers.run_stack(weights["latent"], c.latent, x, rings, span)
    new_patches = self._decoder_patches(weights["decoder"], x)
    patches = [
      write_ring(old, new, position, count)
      for old, new in zip(patches, new_patches, strict=True)
    ]
    return rings, patches

  def _decoder_patches(self, weights, latents):
    """What the decoder reads of patches with latents [B, P, latent width]."""
    c = self.config
    if c.project_latent:
      latents = layers.linear(latents, weights["patch_projection"])
    if c.decoder_cross is None:
      return [latents]
    vectors = latents.reshape(*latents.shape[:2], c.decoder_slots, c.decoder.dim)
    cross, epsilon = c.decoder_cross, c.decoder.norm_epsilon
    return [layers.cross_keys(w, cross, epsilon, vectors) for w in weights["cross"]]

  def _encode_patches(self, weights, cache, ids, real):
    starts, ends = layers.take(cache.starts, ids), layers.take(cache.starts, ids + 1)
    context = starts
    window = self.config.encoder_cross and self.config.encoder_cross.window
    if window:
      context = layers.take(cache.starts, jnp.maximum(ids - window + 1, 0))
    ends = jnp.where(real, ends, 0)
    starts, context = jnp.minimum(starts, ends), jnp.minimum(context, ends)
    read = cache.states, cache.byte_keys
    return encode_patches(weights["encoder"], self.config, *read, starts, ends, context)

  def _decode(self, weights, cache, x, ids, span):
    """Logits [B, C, V] of byte states [B, C, D] that read the patches `ids` [B, C]."""
    c, w = self.config, weights["decoder"]
    if c.decoder_cross is None:
      x = x + layers.take(cache.patches[0], ids)
    angles = layers.rope_angles(c.decoder, span.positions)
    rings = []
    for i, (weight, ring) in enumerate(zip(w["layers"], cache.decoder, strict=True)):
      if c.decoder_cross and i < len(w["cross"]):
        x = layers.read_patches(
          w["cross"][i], c.decoder_cross, c.decoder.norm_epsilon, x, cache.patches[i], ids
        )
      x, ring = layers.run_block(weight, c.decoder, x, ring, span, angles)
      rings.append(ring)
    logits = layers.norm_linear(x, w["norm"], c.decoder.norm_epsilon, weights["output"])
    return logits.astype(jnp.float32), dataclasses.replace(cache, decoder=rings)


def _without_waiting(count, closes, may_wait):
  """Bytes [B] that rows read now: 0 where a patch closes, if too few others close one."""
  has_to = may_wait & (3 * jnp.sum(closes) < 2 * jnp.sum(count > 0))
  return jnp.where(has_to & closes, 0, count)


def embed(
  weights: Any, config: BLTConfig, text: jax.Array, tokens: jax.Array, position: jax.Array
) -> jax.Array:
  """Sum of the embeddings of new bytes [B, C] and of the n-grams that end at them.

  Args:
    weights: `embedding` and `hashes`.
    config: the model.
    text: int [B, T], the bytes of each row.
    tokens: int [B, C], the new ones.
    position: int [B], where they begin.

  Returns:
    float32 [B, C, D].
  """
  x = weights["embedding"][tokens].astype(jnp.float32)
  if not config.hash_sizes:
    return x
  reach = max(config.hash_sizes) - 1
  at = position[:, None] + np.arange(-reach, 0)
  before = jnp.where(at >= 0, layers.take(text, jnp.maximum(at, 0)), 0)
  ids = hashing.ngram_hash_ids(
    jnp.concatenate([before, tokens], axis=1),
    config.hash_sizes,
    config.hash_vocab_size,
    config.hash_functions,
  )[:, :, reach:]
  rows = ids + np.arange(len(ids))[:, None, None] * config.hash_vocab_size
  rows = jax.lax.optimization_barrier(rows)  # or each of the D elements hashes again
  return x + weights["hashes"][rows].astype(jnp.float32).sum(axis=0)
