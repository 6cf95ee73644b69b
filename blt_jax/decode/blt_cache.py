"""What a BLT remembers of the rows that it reads."""

import dataclasses
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from blt_jax.decode import layers
from blt_jax.decode.cursor import Cursor, init_cursor
from blt_jax.models.config import BLTConfig
from blt_jax.ops.ring_attention import write_ring


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BLTCache:
  """What a BLT remembers of each row: T bytes, M patches at most.

  Everything but the cursor lies where its byte or patch belongs, so a row goes back by
  moving the cursor alone.
  """

  cursor: Cursor
  text: jax.Array  # int32 [B, T], the bytes read
  entropies: jax.Array  # float32 [B, T], of the predictions made at them
  starts: jax.Array  # int32 [B, M + 2], where each patch begins, the open one included
  first_patch: jax.Array  # int32 [B, M + 2], where the document of each began, if masked
  states: list[jax.Array]  # [B, T, D], of bytes, that patches begin with
  byte_keys: list[jax.Array]  # [B, T, 2, G, H], what patches read of bytes: keys and values
  patches: list[jax.Array]  # what the decoder reads of closed patches, [B, M, ...]: keys
  # and values [slots, 2, G, H] under each cross-attention, or the vectors [D] themselves
  encoder: list[layers.Ring]
  latent: list[layers.Ring]
  decoder: list[layers.Ring]
  source: Any  # cache of the entropy source, or None
  waits: jax.Array  # bool [B], rows for whose next byte the source need not run again


Cache = TypeVar("Cache", bound=BLTCache)


def init_cache(
  config: BLTConfig,
  dtype: str,
  batch_size: int,
  capacity: int,
  num_patches: int,
  chunk: int,
  source: Any,
) -> BLTCache:
  """Caches of rows that have read nothing.

  Args:
    config: the model.
    dtype: of what is kept of bytes and patches.
    batch_size: B.
    capacity: T, the most bytes that a row will have.
    num_patches: M.
    chunk: the most bytes of one read.
    source: cache of the entropy source, or None.
  """
  c = config

  def zeros(*shape, dtype=jnp.int32):
    return jnp.zeros((batch_size, *shape), dtype)

  def buffers(number, *shape):
    return [zeros(*shape, dtype=dtype) for _ in range(number)]

  def keys_and_values(cross, stack, *shape):
    if cross is None:
      return []
    number = stack.num_layers if cross.all_layers else 1
    return buffers(number, *shape, 2, cross.num_kv_heads, stack.dim // cross.num_heads)

  def rings(stack, length):
    return layers.init_rings(stack, batch_size, length, chunk, dtype)

  byte_keys = keys_and_values(c.encoder_cross, c.encoder, capacity)
  patches = keys_and_values(c.decoder_cross, c.decoder, num_patches, c.decoder_slots)
  return BLTCache(
    cursor=init_cursor(batch_size),
    text=zeros(capacity),
    entropies=zeros(capacity, dtype=jnp.float32),
    starts=zeros(num_patches + 2),
    first_patch=zeros(num_patches + 2),
    states=buffers(max(len(byte_keys), 1) if c.repool else 1, capacity, c.encoder.dim),
    byte_keys=byte_keys,
    patches=patches or buffers(1, num_patches, c.decoder.dim),
    encoder=rings(c.encoder, capacity),
    latent=rings(c.latent, num_patches),
    decoder=rings(c.decoder, capacity),
    source=source,
    waits=zeros(dtype=bool),
  )


def write_bytes(
  config: BLTConfig,
  cache: Cache,
  tokens: jax.Array,
  count: jax.Array,
  entropies: jax.Array,
  begins: jax.Array,
  trail: Cursor,
) -> Cache:
  """Writes down bytes, and where their patches begin.

  Args:
    config: the model.
    cache: of the rows.
    tokens: int [B, C].
    count: int [B], how many of the C are real.
    entropies: float32 [B, C], of the predictions made at them.
    begins: bool [B, C], whether the byte after each starts a patch.
    trail: cursors [B, C + 1] before and after each.
  """
  position, first_patch = cache.cursor.position, cache.first_patch
  if config.latent_document_masks or config.masks_cross_windows:
    first_patch = note(first_patch, begins, count, trail, trail.eos_patch[:, 1:] + 1)
  return dataclasses.replace(
    cache,
    text=write_ring(cache.text, tokens, position, count),
    entropies=write_ring(cache.entropies, entropies, position, count),
    starts=note(cache.starts, begins, count, trail, trail.position[:, 1:]),
    first_patch=first_patch,
  )


def note(
  notes: jax.Array, begins: jax.Array, count: jax.Array, trail: Cursor, values: jax.Array
) -> jax.Array:
  """Notes something of each patch that new bytes begin, under its number.

  Args:
    notes: int [B, M + 2].
    begins: bool [B, C], whether the byte after each starts a patch.
    count: int [B], how many of the C are real.
    trail: cursors [B, C + 1] before and after each.
    values: int [B, C], what to note where one begins.
  """
  real = np.arange(begins.shape[1])[None] < count[:, None]
  slots = jnp.where(begins & real, trail.patch[:, 1:], notes.shape[1])
  return jax.vmap(lambda row, at, new: row.at[at].set(new, mode="drop"))(notes, slots, values)
