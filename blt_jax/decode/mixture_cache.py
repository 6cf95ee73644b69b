"""What a BLT of several resolutions has beside a BLT, to decode: weights and caches."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from blt_jax.decode import layers
from blt_jax.decode.blt_cache import BLTCache
from blt_jax.decode.cursor import Cursor
from blt_jax.decode.from_params import cross_weights, matrix, stack_weights
from blt_jax.decode.weights import BlockWeights, BLTWeights, CrossWeights, axes
from blt_jax.models.mixture import MixtureConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FinerWeights:
  """What patches of a finer resolution go through, on the way to the next coarser one."""

  attention: list[BlockWeights]  # over these patches, or none
  cross: CrossWeights  # by which coarser patches read them
  read: CrossWeights | None  # by which the decoder does
  patch_projection: jax.Array = axes("heads", "embed")  # [K D, D], of the coarser ones


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MixtureWeights(BLTWeights):
  """A mixture: a BLT whose encoder makes the finest patches, and what makes coarser ones."""

  finer: list[FinerWeights] = dataclasses.field(default_factory=list)  # from fine to coarse


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FinerCache:
  """What is remembered of the patches of a finer resolution: M at most."""

  starts: jax.Array  # int32 [B, M + 2], as of a `BLTCache`
  first_patch: jax.Array  # int32 [B, M + 2], likewise
  in_coarser: jax.Array  # int32 [B, M + 2], with which of them each coarser patch begins
  rings: list[layers.Ring]  # of the layer over patches
  vectors: jax.Array  # [B, M K, 2, G, H], what coarser patches read: keys and values
  read: jax.Array | None  # [B, M, K, 2, G, H], what the decoder reads


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MixtureCursor(Cursor):
  """Where the coarsest resolution stands, and the others."""

  finer: list[Cursor]  # from fine to coarse


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MixtureCache(BLTCache):
  """What a mixture remembers; patches are those of the coarsest resolution."""

  cursor: MixtureCursor
  finer: list[FinerCache]  # from fine to coarse
  pooled: jax.Array  # [B, T, D], byte states that coarser patches begin with


def finer_weights(config: MixtureConfig, params: Any, dtype: str) -> list[FinerWeights]:
  """Those of each finer resolution; matrices in `dtype`, norms in float32."""

  def one(index):
    coarser, attention = params[f"coarser_{index}"], []
    if config.finer_attention:
      stacked = params[f"attention_{index}"]["layers"]
      attention = stack_weights(config.patch_stack, stacked, dtype)
    return FinerWeights(
      attention=attention,
      cross=cross_weights(coarser["cross_0"], dtype),
      read=cross_weights(params[f"read_{index}"], dtype) if config.read_finer else None,
      patch_projection=matrix(coarser["patch_projection"], dtype),
    )

  return [one(index) for index in range(config.resolutions - 1)]


def init_finer(
  config: MixtureConfig, dtype: str, batch_size: int, num_patches: int, chunk: int
) -> FinerCache:
  """The cache of a finer resolution in rows that have read nothing.

  Args:
    config: the model.
    dtype: of what is kept of patches.
    batch_size: B.
    num_patches: M.
    chunk: the most bytes of one read.
  """
  c, vectors = config, config.vectors_per_patch

  def keys(cross, *shape):
    heads = cross.num_kv_heads, c.encoder.dim // cross.num_heads
    return jnp.zeros((batch_size, *shape, 2, *heads), dtype)

  places = jnp.zeros((batch_size, num_patches + 2), jnp.int32)
  rings = []
  if c.finer_attention:
    rings = layers.init_rings(c.patch_stack, batch_size, num_patches, chunk, dtype)
  return FinerCache(
    starts=places,
    first_patch=places,
    in_coarser=places,
    rings=rings,
    vectors=keys(c.encoder_cross, num_patches * vectors),
    read=keys(c.decoder_cross, num_patches, vectors) if c.read_finer else None,
  )
