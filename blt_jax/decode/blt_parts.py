"""What a BLT computes of new bytes and of patches that close, the rest being in its cache."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from blt_jax import hashing, tokenizer
from blt_jax.decode import layers, patch_encoder
from blt_jax.decode.blt_cache import BLTCache, Cache
from blt_jax.decode.columns import running_max, running_sum
from blt_jax.decode.weights import BLTWeights, DecoderWeights
from blt_jax.models import local
from blt_jax.models.config import BLTConfig
from blt_jax.ops.decode_layers import linear, norm_linear, take
from blt_jax.ops.ring_attention import write_ring

# Of config, weights, cache, numbers [B, P] and which of these are real, patches [B, P, K D].
Encode = Callable[..., jax.Array]


def embed_bytes(
  weights: BLTWeights,
  config: BLTConfig,
  text: jax.Array,
  tokens: jax.Array,
  position: jax.Array,
  document: jax.Array,
) -> jax.Array:
  """Sum of the embeddings of new bytes [B, C] and of the n-grams that end at them.

  Args:
    weights: of the model.
    config: the model.
    text: int [B, T], the bytes of each row.
    tokens: int [B, C], the new ones.
    position: int [B], where they begin.
    document: int [B], where the document began that the first of them is in.

  Returns:
    float32 [B, C, D].
  """
  x = weights.embedding[tokens].astype(jnp.float32)
  sizes = [sum(keys.widths) for keys in weights.ngram_keys]
  sizes += config.hash_sizes
  if config.pixel_ngrams:  # from above and to the left on
    sizes.append((config.picture_size[1] + 1) * config.picture_size[2] + 1)
  if not sizes:
    return x

  # The bytes before the new ones, as far as n-grams reach back, and the new ones.
  reach = max(sizes) - 1
  at = position[:, None] + np.arange(-reach, 0)[None]
  first = document[:, None] if config.hash_document_masks else 0
  before = jnp.where(at >= first, take(text, jnp.maximum(at, 0)), 0)
  read = jnp.concatenate([before, tokens], axis=1)
  documents = None
  if config.hash_document_masks and tokens.shape[1] > 1:  # others may begin on the way
    ends = (read == tokenizer.EOS_ID).astype(jnp.int32)
    # Computed once, or each n-gram counts the ends again, in a program that compiles for long
    read, documents = jax.lax.optimization_barrier((read, running_sum(ends) - ends))

  # Frequent n-grams, then hashed ones.
  for keys, table in zip(weights.ngram_keys, weights.ngrams, strict=True):
    ids = hashing.ngram_table_ids(keys, read, documents)[:, reach:]
    x += table[ids].astype(jnp.float32)
  if weights.hashes is None:
    return x
  places = _places(read, position, document, reach) if config.pixel_ngrams else None
  rows = local.hash_rows(config, read, documents, places)[:, :, reach:]
  rows = jax.lax.optimization_barrier(rows)  # or each of the D elements hashes again
  return x + weights.hashes[rows].astype(jnp.float32).sum(axis=0)


def _places(read: jax.Array, position: jax.Array, document: jax.Array, reach: int) -> jax.Array:
  """Places in their documents of new ids, and 0 of `reach` ids before them: [B, reach + C]."""
  after = position[:, None] + np.arange(1, read.shape[1] - reach)[None]
  begins = jnp.where(read[:, reach:-1] == tokenizer.EOS_ID, after, 0)
  starts = running_max(jnp.concatenate([document[:, None], begins], axis=1))
  places = jnp.concatenate([position[:, None], after], axis=1) - starts
  return jnp.pad(places, ((0, 0), (reach, 0)))


def encode_bytes(
  config: BLTConfig,
  weights: BLTWeights,
  cache: Cache,
  tokens: jax.Array,
  span: layers.Span,
  added: jax.Array | None = None,
) -> tuple[jax.Array, Cache]:
  """Byte states [B, C, D] of the encoder; stores what patches will read of them.

  Args:
    config: the model.
    weights: of it.
    cache: of the rows.
    tokens: int [B, C].
    span: of them.
    added: [B, C, D] that are added to the embeddings, or None.
  """
  c = config
  where = span.position, cache.cursor.document
  x = embed_bytes(weights, c, cache.text, tokens, *where).astype(weights.embedding.dtype)
  if added is not None:
    x = x + added
  angles = layers.rope_angles(c.encoder, span.positions)
  rings, states = [], []
  for weight, ring in zip(weights.encoder.layers, cache.encoder, strict=True):
    x, ring = layers.run_block(weight, c.encoder, x, ring, span, angles)
    rings.append(ring)
    states.append(x)

  # Keys and values for cross-attentions, which follow the last layers; states to pool.
  crosses, read = weights.encoder.cross, []
  if c.encoder_cross is not None:
    read = [
      layers.cross_keys(w, c.encoder_cross, c.encoder.norm_epsilon, x)
      for w, x in zip(crosses, states[-len(crosses) :], strict=True)
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


def add_closed_patches(
  config: BLTConfig,
  weights: BLTWeights,
  cache: Cache,
  closed: jax.Array,
  block: int,
  encode: Encode | None = None,
) -> Cache:
  """Takes in the patches up to number `closed` [B], `block` of each row at a time.

  `encode` is what makes them; by default what makes those of a BLT.
  """

  def add(position, count, states):
    rings, patches = states
    return add_patches(config, weights, cache, position, count, block, rings, patches, encode)

  states = cache.latent, cache.patches
  rings, patches = in_blocks(cache.cursor.patch, closed, block, add, states)
  return dataclasses.replace(cache, latent=rings, patches=patches)


def in_blocks(
  before: jax.Array, closed: jax.Array, block: int, add: Callable[..., Any], states: Any
) -> Any:
  """Runs over the patches from `before` [B] to `closed` [B], `block` of each row at a time.

  Args:
    before: int [B], the first of each row.
    closed: int [B], that after the last.
    block: how many at once, at most.
    add: of the first [B] of them, how many [B] and states, what the states are then.
    states: at first.
  """
  new = closed - before

  def more(carry):
    return carry[0] < jnp.max(new)

  def step(carry):
    done, states = carry
    return done + block, add(before + done, jnp.clip(new - done, 0, block), states)

  return jax.lax.while_loop(more, step, (jnp.zeros((), jnp.int32), states))[1]


def add_patches(
  config: BLTConfig,
  weights: BLTWeights,
  cache: BLTCache,
  position: jax.Array,
  count: jax.Array,
  block: int,
  rings: list[layers.Ring],
  patches: list[jax.Array],
  encode: Encode | None = None,
) -> tuple[list[layers.Ring], list[jax.Array]]:
  """Takes in `count` [B] patches from `position` [B] on, `block` at most.

  `rings` and `patches` are those of the cache, or newer, and come back with the patches.
  """
  c = config
  ids = position[:, None] + np.arange(block)[None]
  real = jnp.arange(block)[None] < count[:, None]
  x = (encode or encode_patches)(config, weights, cache, ids, real)
  if weights.latent_projection is not None:
    x = linear(x, weights.latent_projection)
  first = take(cache.first_patch, ids)
  if not c.latent_document_masks:
    first = jnp.zeros_like(first)
  span = layers.Span(position, count, first)
  x, rings = layers.run_stack(weights.latent, c.latent, x, rings, span)
  new_patches = _decoder_patches(config, weights.decoder, x)
  patches = [
    write_ring(old, new, position, count) for old, new in zip(patches, new_patches, strict=True)
  ]
  return rings, patches


def _decoder_patches(
  config: BLTConfig, weights: DecoderWeights, latents: jax.Array
) -> list[jax.Array]:
  """What the decoder reads of patches with latents [B, P, latent width]."""
  c = config
  if weights.patch_projection is not None:
    latents = linear(latents, weights.patch_projection)
  if c.decoder_cross is None:
    return [latents]
  vectors = latents.reshape(*latents.shape[:2], c.decoder_slots, c.decoder.dim)
  cross, epsilon = c.decoder_cross, c.decoder.norm_epsilon
  return [layers.cross_keys(w, cross, epsilon, vectors) for w in weights.cross]


def encode_patches(
  config: BLTConfig, weights: BLTWeights, cache: BLTCache, ids: jax.Array, real: jax.Array
) -> jax.Array:
  """Patches [B, P, K D] with numbers `ids` [B, P], of no bytes where not `real` [B, P]."""
  spans = patch_spans(config, cache.starts, cache.first_patch, ids, real)
  read = cache.states, cache.byte_keys
  return patch_encoder.encode_patches(weights.encoder, config, *read, *spans)


def patch_spans(
  config: BLTConfig, notes: jax.Array, first_patch: jax.Array, ids: jax.Array, real: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Where patches begin and end, and where what they read begins: int [B, P] each.

  Args:
    config: the model.
    notes: int [B, M + 2], where each patch begins, in bytes or in what else they consist of.
    first_patch: int [B, M + 2], the first patch of the document of each.
    ids: int [B, P], the patches.
    real: bool [B, P], whether they have anything in them.
  """
  starts, ends = take(notes, ids), take(notes, ids + 1)
  context = starts
  window = config.encoder_cross and config.encoder_cross.window
  if window:
    oldest = jnp.maximum(ids - window + 1, 0)
    if config.masks_cross_windows:
      oldest = jnp.maximum(oldest, take(first_patch, ids))
    context = take(notes, oldest)
  ends = jnp.where(real, ends, 0)
  return jnp.minimum(starts, ends), ends, jnp.minimum(context, ends)


def decode_bytes(
  config: BLTConfig,
  weights: BLTWeights,
  cache: Cache,
  x: jax.Array,
  ids: jax.Array,
  span: layers.Span,
) -> tuple[jax.Array, Cache]:
  """Logits [B, C, V] of byte states [B, C, D] that read the patches `ids` [B, C]."""
  c, w = config, weights.decoder
  if c.decoder_cross is None:
    x = x + take(cache.patches[0], ids)
  angles = layers.rope_angles(c.decoder, span.positions)
  first = take(cache.first_patch, ids) if c.masks_cross_windows else None
  rings = []
  for i, (weight, ring) in enumerate(zip(w.layers, cache.decoder, strict=True)):
    if c.decoder_cross and i < len(w.cross):
      x = layers.read_patches(
        w.cross[i], c.decoder_cross, c.decoder.norm_epsilon, x, cache.patches[i], ids, first
      )
    x, ring = layers.run_block(weight, c.decoder, x, ring, span, angles)
    rings.append(ring)
  logits = norm_linear(x, w.norm, c.decoder.norm_epsilon, weights.output)
  return logits.astype(jnp.float32), dataclasses.replace(cache, decoder=rings)
