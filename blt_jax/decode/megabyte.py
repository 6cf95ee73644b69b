"""A MegaByte that reads on from caches: the global model runs where a patch begins."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from blt_jax import tokenizer
from blt_jax.decode import layers
from blt_jax.decode.columns import running_max
from blt_jax.decode.from_params import matrix, stack_weights
from blt_jax.decode.language_model import LanguageModel
from blt_jax.decode.reader import Pending, WithoutPatches
from blt_jax.decode.weights import BlockWeights, axes
from blt_jax.models.megabyte import MegaByte, MegaByteConfig
from blt_jax.ops.decode_layers import linear, norm_linear, retain, take
from blt_jax.ops.ring_attention import write_ring


def from_megabyte(model: MegaByte, params: Any) -> LanguageModel:
  """A MegaByte that reads on from caches.

  Args:
    model: the module.
    params: its parameters, sharded or not; the weights follow them.
  """
  config = model.config
  weights = jax.jit(lambda p: _weights(config, p, config.dtype))(params)
  return LanguageModel(MegaByteReader(config, config.dtype), weights)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MegaByteWeights:
  """A MegaByte."""

  global_layers: list[BlockWeights]
  local_layers: list[BlockWeights]
  global_embedding: jax.Array = axes("vocab", None)  # [V, D / P]
  global_positions: jax.Array = axes(None, "embed")  # [max_patches, D]
  global_start: jax.Array = axes("embed")  # [D]
  hand_over: jax.Array = axes("embed", None)  # [d, D / P]
  local_embedding: jax.Array = axes("vocab", "embed")  # [V, d]
  local_positions: jax.Array = axes(None, "embed")  # [P, d]
  norm: jax.Array = axes("norm")  # [d]
  output: jax.Array = axes("vocab", "embed")  # [V, d]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Place:
  """Where each row stands."""

  position: jax.Array  # int32 [B], bytes read
  first: jax.Array  # int32 [B], the first patch of the document that the next byte is in


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MegaByteCache:
  """What a MegaByte remembers of each row: T bytes, and whole patches of them."""

  cursor: Place
  text: jax.Array  # int32 [B, T]
  slices: jax.Array  # [B, T', D / P], what the global model hands over for each position
  global_rings: list[layers.Ring]
  local_rings: list[layers.Ring]


@dataclasses.dataclass(frozen=True)
class MegaByteReader(WithoutPatches):
  """Reads bytes with a `MegaByte`.

  Attributes:
    config: the model.
    dtype: of weights, activations and cache.
  """

  config: MegaByteConfig
  dtype: str

  @property
  def vocab_size(self) -> int:
    """See `Reader`."""
    return self.config.vocab_size

  @property
  def max_patches(self) -> int:  # type: ignore[override]
    """See `Reader`: there are no more learned positions."""
    return self.config.max_patches

  @property
  def max_length(self) -> int:  # type: ignore[override]
    """See `Reader`: that many learned positions, of whole patches."""
    return self.config.max_patches * self.config.patch_size

  def init(self, batch_size: int, capacity: int, chunk: int) -> MegaByteCache:
    """See `Reader`."""
    c = self.config
    num_patches = -(-(capacity + chunk) // c.patch_size)
    zero = jnp.zeros(batch_size, jnp.int32)
    return MegaByteCache(
      cursor=Place(zero, zero),
      text=jnp.zeros((batch_size, capacity), jnp.int32),
      slices=jnp.zeros((batch_size, num_patches * c.patch_size, c.slice_dim), self.dtype),
      global_rings=layers.init_rings(
        c.global_model, batch_size, num_patches, chunk, self.dtype
      ),
      local_rings=layers.init_rings(c.local_stack, batch_size, capacity, chunk, self.dtype),
    )

  def read(
    self, weights: MegaByteWeights, cache: MegaByteCache, tokens: jax.Array, count: jax.Array
  ) -> tuple[jax.Array, Pending]:
    """See `Reader`."""
    c, cursor = self.config, cache.cursor
    trail = self._trail(cursor, tokens)
    text = write_ring(cache.text, tokens, cursor.position, count)
    cache = dataclasses.replace(cache, text=text)
    cache = self._begin_patches(weights, cache, trail, count)

    # The local model, whose context begins anew with each patch.
    position = trail.position[:, :-1]  # [B, C]
    place = position % c.patch_size
    own = weights.local_embedding[tokens] * (place > 0)[..., None]
    x = (own + weights.local_positions[place]).astype(self.dtype)
    x = retain(x + linear(take(cache.slices, position), weights.hand_over))  # [B, C, d]
    stack, span = c.local_stack, layers.Span(cursor.position, count, position - place)
    x, rings = layers.run_stack(weights.local_layers, stack, x, cache.local_rings, span, place)
    logits = norm_linear(x, weights.norm, stack.norm_epsilon, weights.output)
    cache = dataclasses.replace(cache, local_rings=rings)
    return retain(logits.astype(jnp.float32)), Pending(cache, trail)

  def patches_left(self, cache: MegaByteCache) -> jax.Array:
    """See `Reader`; of whole patches, so many bytes, each of which may begin one."""
    return self.max_length - cache.cursor.position

  def _trail(self, cursor: Place, tokens: jax.Array) -> Place:
    """Places [B, C + 1] before and after each of the ids [B, C]."""
    position = cursor.position[:, None] + jnp.arange(tokens.shape[1] + 1)[None]
    is_end = tokens == tokenizer.EOS_ID
    begun = jnp.where(is_end, position[:, :-1] // self.config.patch_size + 1, 0)
    first = running_max(jnp.concatenate([cursor.first[:, None], begun], axis=1))
    return Place(position, first)

  def _begin_patches(
    self, weights: MegaByteWeights, cache: MegaByteCache, trail: Place, count: jax.Array
  ) -> MegaByteCache:
    """Runs the global model for the patches that begin among the new bytes, if any do."""
    c, size = self.config, self.config.patch_size
    start = cache.cursor.position
    begun = -(-start // size)  # [B], patches before
    new = -(-(start + count) // size) - begun
    most = -(-(trail.position.shape[1] - 1) // size)  # M, of new ones

    def run(cache):
      number = begun[:, None] + jnp.arange(most)[None]  # [B, M]
      first = take(trail.first, number * size - start[:, None])
      at = (number * size)[..., None] + jnp.arange(1 - size, 1)[None, None]  # [B, M, P]
      patches = weights.global_embedding[take(cache.text, at)].reshape(*number.shape, -1)
      patches = jnp.where((number == first)[..., None], weights.global_start, patches)
      patches = patches + weights.global_positions.at[number - first].get(mode="clip")
      span = layers.Span(begun, new, first)
      patches, rings = layers.run_stack(
        weights.global_layers,
        c.global_model,
        retain(patches.astype(self.dtype)),
        cache.global_rings,
        span,
        number - first,
      )
      slices = patches.reshape(len(start), most * size, c.slice_dim)
      slices = write_ring(cache.slices, slices, begun * size, new * size)
      return dataclasses.replace(cache, slices=slices, global_rings=rings)

    return jax.lax.cond(jnp.any(new > 0), run, lambda cache: cache, cache)


def _weights(config: MegaByteConfig, params: Any, dtype: str) -> MegaByteWeights:
  """Weights of a MegaByte; matrices in `dtype`, norms in float32."""

  def table(name):
    return params[name]["embedding"].astype(dtype)

  def blocks(stack, name):
    return stack_weights(stack, params[name]["layers"], dtype)

  return MegaByteWeights(
    global_layers=blocks(config.global_model, "global_transformer"),
    local_layers=blocks(config.local_model, "local_transformer"),
    global_embedding=table("global_embedding"),
    global_positions=table("global_positions"),
    global_start=table("global_start")[0],
    hand_over=matrix(params["hand_over"], dtype),
    local_embedding=table("local_embedding"),
    local_positions=table("local_positions"),
    norm=params["norm"]["scale"],
    output=matrix(params["output"], dtype),
  )
