"""A SpaceByte that reads on from caches: the global layers run where a byte is global."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from blt_jax import tokenizer
from blt_jax.decode import layers
from blt_jax.decode.columns import running_max, running_sum
from blt_jax.decode.from_params import matrix, stack_weights
from blt_jax.decode.language_model import LanguageModel
from blt_jax.decode.reader import Pending, WithoutPatches
from blt_jax.decode.weights import BlockWeights, axes
from blt_jax.models.spacebyte import SpaceByte, SpaceByteConfig, is_global
from blt_jax.ops.decode_layers import norm_linear, retain, take


def from_spacebyte(model: SpaceByte, params: Any) -> LanguageModel:
  """A SpaceByte that reads on from caches; it has a slot for every global position.

  Args:
    model: the module.
    params: its parameters, sharded or not; the weights follow them.
  """
  config = model.config
  weights = jax.jit(lambda p: _weights(config, p, config.dtype))(params)
  return LanguageModel(SpaceByteReader(config, config.dtype), weights)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SpaceByteWeights:
  """A SpaceByte."""

  initial: list[BlockWeights]
  global_layers: list[BlockWeights]
  final: list[BlockWeights]
  embedding: jax.Array = axes("vocab", "embed")  # [V, d]
  norm: jax.Array = axes("norm")  # [d]
  output: jax.Array = axes("vocab", "embed")  # [V, d]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Place:
  """Where each row stands, all int32 [B]."""

  position: jax.Array  # bytes read
  start: jax.Array  # where the document of the next byte began
  slot: jax.Array  # global positions among the bytes
  first_slot: jax.Array  # the first of them that the next byte's document has, or will have
  last: jax.Array  # the newest id, an EOS at first


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SpaceByteCache:
  """What a SpaceByte remembers of each row."""

  cursor: Place
  initial: list[layers.Ring]
  global_rings: list[layers.Ring]
  final: list[layers.Ring]


@dataclasses.dataclass(frozen=True)
class SpaceByteReader(WithoutPatches):
  """Reads bytes with a `SpaceByte`, with a slot for every global position.

  Attributes:
    config: the model.
    dtype: of weights, activations and cache.
  """

  config: SpaceByteConfig
  dtype: str

  @property
  def vocab_size(self) -> int:
    """See `Reader`."""
    return self.config.vocab_size

  def init(self, batch_size: int, capacity: int, chunk: int) -> SpaceByteCache:
    """See `Reader`."""
    c = self.config
    zero = jnp.zeros(batch_size, jnp.int32)
    place = Place(zero, zero, zero, zero, jnp.full(batch_size, tokenizer.EOS_ID, jnp.int32))
    initial, wide, final = (
      layers.init_rings(stack, batch_size, capacity, chunk, self.dtype)
      for stack in (c.initial, c.global_model, c.final)
    )
    return SpaceByteCache(place, initial, wide, final)

  def read(
    self, weights: SpaceByteWeights, cache: SpaceByteCache, tokens: jax.Array, count: jax.Array
  ) -> tuple[jax.Array, Pending]:
    """See `Reader`."""
    c = self.config
    before = jnp.concatenate([cache.cursor.last[:, None], tokens[:, :-1]], axis=1)
    begins = is_global(tokens, before)  # [B, C]
    trail = _trail(cache.cursor, tokens, begins)
    span = layers.Span(cache.cursor.position, count, trail.start[:, :-1])

    x = retain(weights.embedding[tokens].astype(self.dtype))  # [B, C, d]
    x, initial = layers.run_stack(weights.initial, c.initial, x, cache.initial, span)
    real = jnp.arange(tokens.shape[1])[None] < count[:, None]
    x, wide = self._think(weights, cache, x, begins & real, trail)
    x, final = layers.run_stack(weights.final, c.final, x, cache.final, span)
    logits = norm_linear(x, weights.norm, c.local_model.norm_epsilon, weights.output)
    cache = SpaceByteCache(cache.cursor, initial, wide, final)
    return retain(logits.astype(jnp.float32)), Pending(cache, trail)

  def _think(
    self,
    weights: SpaceByteWeights,
    cache: SpaceByteCache,
    x: jax.Array,
    begins: jax.Array,
    trail: Place,
  ) -> tuple[jax.Array, list[layers.Ring]]:
    """Runs the global layers where any of the new bytes [B, C] is global.

    Returns:
      x [B, C, d] with what they add, and their rings.
    """
    c, (_, length, dim) = self.config, x.shape

    def run(x, rings):
      at = jax.vmap(lambda row: jnp.nonzero(row, size=length, fill_value=length - 1)[0])(begins)
      wide = jnp.pad(take(x, at), ((0, 0), (0, 0), (c.global_model.dim - dim, 0)))
      first = take(trail.first_slot, at)
      span = layers.Span(cache.cursor.slot, begins.sum(axis=1, dtype=jnp.int32), first)
      wide, rings = layers.run_stack(weights.global_layers, c.global_model, wide, rings, span)
      added = take(wide[..., -dim:], running_sum(begins.astype(jnp.int32)) - 1)
      return x + jnp.where(begins[..., None], added, 0), rings

    def leave(x, rings):
      return x, rings

    return jax.lax.cond(jnp.any(begins), run, leave, x, cache.global_rings)


def _trail(cursor: Place, tokens: jax.Array, begins: jax.Array) -> Place:
  """Places [B, C + 1] before and after each of the ids [B, C]."""

  def follow(first, rest):
    return jnp.concatenate([first[:, None], rest], axis=1)

  position = cursor.position[:, None] + jnp.arange(tokens.shape[1] + 1)[None]
  slot = running_sum(follow(cursor.slot, begins.astype(jnp.int32)))
  is_end = tokens == tokenizer.EOS_ID
  return Place(
    position=position,
    start=running_max(follow(cursor.start, jnp.where(is_end, position[:, 1:], 0))),
    slot=slot,
    first_slot=running_max(follow(cursor.first_slot, jnp.where(is_end, slot[:, 1:], 0))),
    last=follow(cursor.last, tokens),
  )


def _weights(config: SpaceByteConfig, params: Any, dtype: str) -> SpaceByteWeights:
  """Weights of a SpaceByte; matrices in `dtype`, norms in float32."""

  def blocks(stack, name):
    return stack_weights(stack, params[name]["layers"], dtype)

  return SpaceByteWeights(
    initial=blocks(config.initial, "initial"),
    global_layers=blocks(config.global_model, "global_transformer"),
    final=blocks(config.final, "final"),
    embedding=params["embedding"]["embedding"].astype(dtype),
    norm=params["norm"]["scale"],
    output=matrix(params["output"], dtype),
  )
