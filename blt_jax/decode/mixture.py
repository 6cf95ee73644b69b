"""A BLT of several resolutions that reads on from caches: finer patches close first."""

import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from blt_jax.decode import blt_cache, blt_parts, layers, patch_encoder
from blt_jax.decode.blt import BLTReader, Known
from blt_jax.decode.cursor import Cursor, advance_cursor, init_cursor
from blt_jax.decode.language_model import LanguageModel, from_blt
from blt_jax.decode.mixture_cache import (
  FinerCache,
  FinerWeights,
  MixtureCache,
  MixtureCursor,
  MixtureWeights,
  finer_weights,
  init_finer,
)
from blt_jax.decode.reader import Pending, WithoutPatches
from blt_jax.models.config import CrossAttentionConfig
from blt_jax.models.mixture import MixtureBLT, MixtureConfig
from blt_jax.ops import decode_layers
from blt_jax.ops.decode_layers import take
from blt_jax.ops.ring_attention import write_ring
from blt_jax.patching import PatchingConfig


def from_mixture(
  model: MixtureBLT,
  params: Any,
  patching: PatchingConfig,
  entropy_model: Any = None,
  **options: Any,
) -> LanguageModel:
  """A mixture that patches what it reads and writes; it has a slot for every patch.

  Args:
    model: the module.
    params: its parameters, sharded or not; the weights follow them.
    patching: how to patch, at each resolution.
    entropy_model: config and parameters of a byte language model, for the entropy scheme.
    **options: as of `language_model.from_blt`.

  Raises:
    ValueError: as `from_blt`; or the rule has another number of resolutions.
  """
  c = model.config
  if len(patching.resolutions) != c.resolutions:
    raise ValueError(
      f"The rule has {len(patching.resolutions)} resolutions (coarser={patching.coarser}), and "
      f"patch_sizes {c.patch_sizes} has {c.resolutions}; give as many."
    )
  found = from_blt(model, params, patching, entropy_model, **options)
  reader: Any = found.reader
  finer = jax.jit(functools.partial(finer_weights, c, dtype=reader.dtype))(params)
  return LanguageModel(
    MixtureReader(**_fields(reader)), MixtureWeights(**_fields(found.weights), finer=finer)
  )


def _fields(values: Any) -> dict[str, Any]:
  return {field.name: getattr(values, field.name) for field in dataclasses.fields(values)}


def _cross(config: CrossAttentionConfig | None) -> CrossAttentionConfig:
  """A cross-attention that is there, as the model's config has seen to."""
  return cast(CrossAttentionConfig, config)


@dataclasses.dataclass(frozen=True)
class MixtureReader(BLTReader):
  """Reads bytes with a `MixtureBLT`, patching them by itself at each resolution."""

  config: MixtureConfig

  @property
  def drafters(self) -> tuple[str, ...]:
    """See `Reader`."""
    return ()

  def init(self, batch_size: int, capacity: int, chunk: int) -> MixtureCache:
    """See `Reader`."""
    c, patches = self.config, self.max_patches or capacity + chunk
    blt = super().init(batch_size, capacity, chunk)
    finer = range(c.resolutions - 1)
    cursors = [init_cursor(batch_size) for _ in finer]
    fields = _fields(blt) | {"cursor": MixtureCursor(**_fields(blt.cursor), finer=cursors)}
    caches = [init_finer(c, self.dtype, batch_size, patches, chunk) for _ in finer]
    pooled = jnp.zeros((batch_size, capacity, c.encoder.dim), self.dtype)
    return MixtureCache(**fields, finer=caches, pooled=pooled)

  def read(  # type: ignore[override]  # its cache has more
    self,
    weights: MixtureWeights,
    cache: MixtureCache,
    tokens: jax.Array,
    count: jax.Array,
    known: Known | None = None,
    num_latents: jax.Array | None = None,
  ) -> tuple[jax.Array, Pending]:
    """See `Reader`; what only drafting gives is of no effect."""
    del known, num_latents
    c, cursor = self.config, cache.cursor
    known = self._read_source(weights, cache, tokens, count)
    entropies = jnp.zeros(tokens.shape) if known is None else known.entropies

    # Bytes to patches, from coarse to fine.
    begins, trails = self._advance(cursor, tokens, entropies, cache.text.shape[1])
    trail = MixtureCursor(**_fields(trails[-1]), finer=trails[:-1])
    cache = blt_cache.write_bytes(c, cache, tokens, count, entropies, begins[-1], trail)
    finer = [
      _note(own, begins[i : i + 2], trails[i : i + 2], count)
      for i, own in enumerate(cache.finer)
    ]
    cache = dataclasses.replace(cache, finer=finer)

    # The encoder, and the patches that have closed, from fine to coarse.
    span = self._span(cursor, count, trail.document[:, :-1])
    x, cache = blt_parts.encode_bytes(c, weights, cache, tokens, span)
    pooled = write_ring(cache.pooled, x, span.position, span.count)
    cache, block = dataclasses.replace(cache, pooled=pooled), -(-tokens.shape[1] // 4)
    for index, own in enumerate(trails[:-1]):
      cache = _close(c, weights, cache, index, _after(own, count), block)
    encode = functools.partial(_encode, index=c.resolutions - 1)
    closed = _after(trail, count)
    cache = blt_parts.add_closed_patches(c, weights, cache, closed, block, encode)

    # The decoder.
    for own, found, weight in zip(trails[:-1], cache.finer, weights.finer, strict=True):
      x = _read_finer(c, weight, found, x, own.patch[:, 1:] - 1)
    logits, cache = blt_parts.decode_bytes(c, weights, cache, x, trail.patch[:, 1:] - 1, span)
    return logits, Pending(cache, trail, known and known.pending)

  read_byte = WithoutPatches.read_byte  # no row waits

  def _advance(
    self, cursor: MixtureCursor, tokens: jax.Array, entropies: jax.Array, capacity: int
  ) -> tuple[list[jax.Array], list[Cursor]]:
    """`advance_cursor` at each resolution, from fine to coarse."""
    coarsest = Cursor(**{f.name: getattr(cursor, f.name) for f in dataclasses.fields(Cursor)})
    begins: list[jax.Array] = []
    trails: list[Cursor] = []
    cursors = [*cursor.finer, coarsest]
    for rule, own in reversed(list(zip(self.patching.resolutions, cursors, strict=True))):
      coarser = begins[0] if begins else None
      found, trail = advance_cursor(
        rule, own, tokens, entropies, capacity=capacity, coarser=coarser
      )
      begins.insert(0, found)
      trails.insert(0, trail)
    return begins, trails

  def patches_left(self, cache: MixtureCache) -> jax.Array:  # type: ignore[override]
    """See `Reader`; the finest resolution has the most patches, and as many slots."""
    return super().patches_left(_finest(cache))

  def patches(  # type: ignore[override]
    self, cache: MixtureCache
  ) -> tuple[jax.Array, jax.Array | None]:
    """See `Reader`; those of the finest resolution."""
    return super().patches(_finest(cache))


def _finest(cache: MixtureCache) -> MixtureCache:
  """A cache whose patches are those of the finest resolution."""
  own: Any = [*cache.finer, cache][0]
  patch = [*cache.cursor.finer, cache.cursor][0].patch
  cursor = dataclasses.replace(cache.cursor, patch=patch)
  return dataclasses.replace(cache, starts=own.starts, cursor=cursor)


def _after(trail: Cursor, count: jax.Array) -> jax.Array:
  """The open patch [B] after the first `count` [B] bytes."""
  return jnp.take_along_axis(trail.patch, count[:, None], axis=1)[:, 0]


def _note(
  cache: FinerCache, begins: list[jax.Array], trails: list[Cursor], count: jax.Array
) -> FinerCache:
  """Notes where patches begin, of bytes [B, C]: those of the cache, and the coarser ones."""
  fine, coarse = trails
  after = fine.patch[:, 1:]
  return dataclasses.replace(
    cache,
    starts=blt_cache.note(cache.starts, begins[0], count, fine, fine.position[:, 1:]),
    first_patch=blt_cache.note(
      cache.first_patch, begins[0], count, fine, fine.eos_patch[:, 1:] + 1
    ),
    in_coarser=blt_cache.note(cache.in_coarser, begins[1], count, coarse, after),
  )


def _close(
  config: MixtureConfig,
  weights: MixtureWeights,
  cache: MixtureCache,
  index: int,
  closed: jax.Array,
  block: int,
) -> MixtureCache:
  """Takes in the patches of finer resolution `index` up to `closed` [B], a block at a time."""
  c, weight, before = config, weights.finer[index], cache.cursor.finer[index].patch
  first_patch = cache.finer[index].first_patch

  def add(position: jax.Array, count: jax.Array, own: FinerCache) -> FinerCache:
    ids = position[:, None] + np.arange(block)[None]
    real = jnp.arange(block)[None] < count[:, None]
    x, rings = _encode(c, weights, cache, ids, real, index), own.rings
    if c.finer_attention:
      first = take(first_patch, ids)
      if not c.latent_document_masks:
        first = jnp.zeros_like(first)
      span = layers.Span(position, count, first)
      x, rings = layers.run_stack(weight.attention, c.patch_stack, x, rings, span)
    k, epsilon = c.vectors_per_patch, c.encoder.norm_epsilon
    vectors = x.reshape(*x.shape[:2], k, c.encoder.dim)
    keys = layers.cross_keys(weight.cross, _cross(c.encoder_cross), epsilon, vectors)
    flat = keys.reshape(len(x), -1, *keys.shape[3:])
    read = own.read
    if weight.read is not None and read is not None:
      cross = _cross(c.decoder_cross)
      new = layers.cross_keys(weight.read, cross, c.decoder.norm_epsilon, vectors)
      read = write_ring(read, new, position, count)
    return dataclasses.replace(
      own,
      rings=rings,
      vectors=write_ring(own.vectors, flat, k * position, k * count),
      read=read,
    )

  found = blt_parts.in_blocks(before, closed, block, add, cache.finer[index])
  finer = [found if i == index else own for i, own in enumerate(cache.finer)]
  return dataclasses.replace(cache, finer=finer)


def _encode(
  config: MixtureConfig,
  weights: MixtureWeights,
  cache: MixtureCache,
  ids: jax.Array,
  real: jax.Array,
  index: int,
) -> jax.Array:
  """Patches [B, P, K D] of resolution `index`; see `blt_parts.encode_patches`."""
  c, k = config, config.vectors_per_patch
  own: Any = [*cache.finer, cache][index]
  if index == 0:
    own_cache = dataclasses.replace(cache, starts=own.starts, first_patch=own.first_patch)
    return blt_parts.encode_patches(c, weights, own_cache, ids, real)
  finer, weight = cache.finer[index - 1], weights.finer[index - 1]
  starts, ends, _ = blt_parts.patch_spans(c, own.starts, own.first_patch, ids, real)
  pooled = decode_layers.pool_bytes(cache.pooled, starts, ends, c.pooling)
  patches = decode_layers.linear(pooled, weight.patch_projection)
  patches = patches.reshape(*ids.shape, k, c.encoder.dim)
  _, ends, context = blt_parts.patch_spans(c, finer.in_coarser, own.first_patch, ids, real)
  crossed = _cross(c.encoder_cross), c.encoder.norm_epsilon
  patches = patch_encoder.read_own(
    weight.cross, *crossed, patches, finer.vectors, k * context, k * ends
  )
  return patches.reshape(*ids.shape, -1)


def _read_finer(
  config: MixtureConfig, weights: FinerWeights, cache: FinerCache, x: jax.Array, ids: jax.Array
) -> jax.Array:
  """Byte states [B, C, D] that have read the finer patches `ids` [B, C]."""
  c = config
  if weights.read is None or cache.read is None:
    return x
  first = take(cache.first_patch, ids) if c.masks_cross_windows else None
  return layers.read_patches(
    weights.read, _cross(c.decoder_cross), c.decoder.norm_epsilon, x, cache.read, ids, first
  )
