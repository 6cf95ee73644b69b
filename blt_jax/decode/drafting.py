"""Drafts of the bytes to come, for the model to verify in one read.

A draft changes the speed alone: a byte is kept where it is what the model draws itself.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from blt_jax.decode.blt import BLTReader
from blt_jax.decode.blt_cache import BLTCache
from blt_jax.decode.byte_lm import EntropyModel, rewind

Choose = Callable[[jax.Array, jax.Array], jax.Array]  # logits [B, V], index [B] -> ids [B]


@dataclasses.dataclass(frozen=True)
class Drafting:
  """How bytes are drafted.

  Attributes:
    by: "entropy": the entropy model, which reads every byte anyway; "decoder": the model
      itself without its latent transformer, which goes on past the end of a patch.
    length: bytes in a draft at most, the first included, which is always right.
    max_entropy: nats; a draft ends at a byte after which the entropy model is less
      certain than this.
  """

  by: Literal["entropy", "decoder"] = "entropy"
  length: int = 6
  max_entropy: float = 1.5

  def __post_init__(self):
    if self.by not in ("entropy", "decoder"):
      raise ValueError(f"Unknown drafter {self.by!r}; choose 'entropy' or 'decoder'.")
    if self.length < 2:
      raise ValueError(f"A draft has 2 bytes or more, got length {self.length}.")


def check_drafting(drafting: Drafting, reader: Any) -> None:
  """Raises ValueError unless a reader can draft so."""
  source = getattr(reader, "source", None)
  if source is None:
    raise ValueError(
      "A draft ends where the next byte is uncertain, so it needs a BLT with entropies "
      "(patching scheme entropy); generate without drafts."
    )
  if drafting.by == "entropy" and not isinstance(source, EntropyModel):
    raise ValueError(
      "This model's entropies come from a table, which cannot draft bytes; draft by "
      "'decoder', or not at all."
    )


@dataclasses.dataclass(frozen=True)
class Draft:
  """Bytes [B, C] that may follow, of which `count` [B] are meant.

  The entropy source has read them; `cache` is as before them but for the source, whose
  cursor is [B, C + 1].
  """

  tokens: jax.Array
  count: jax.Array
  entropies: jax.Array
  cache: BLTCache


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _State:
  """A draft of up to C bytes in the making."""

  step: jax.Array  # int32 []
  cache: BLTCache
  tokens: jax.Array  # int32 [B, C], the newest of which is not read yet
  entropies: jax.Array  # float32 [B, C], of the predictions made at them
  trail: Any  # cursors of the entropy source [B, C + 1], before the draft and after each byte
  count: jax.Array  # int32 [B], bytes read
  goes_on: jax.Array  # bool [B]


def draft(
  drafting: Drafting,
  reader: BLTReader,
  weights: Any,
  cache: BLTCache,
  first: jax.Array,
  room: jax.Array,
  choose: Choose,
) -> Draft:
  """Drafts bytes.

  Args:
    drafting: how.
    reader: the model, with an entropy source that gives logits if that one drafts.
    weights: of the reader.
    cache: of the reader.
    first: int [B], the byte to begin with.
    room: int [B], bytes that a row may still have; 0 for rows that rest.
    choose: draws the byte after the one at `index` in the draft.
  """
  start, length = cache.cursor, drafting.length

  def is_on(state):
    return (state.step < length) & jnp.any(state.goes_on)

  def step(state):
    reads = state.goes_on.astype(jnp.int32)  # a row that has stopped reads nothing more
    token = state.tokens[jnp.arange(len(first)), jnp.minimum(state.count, length - 1)]
    cache, logits, entropy = _read_one(
      drafting, reader, weights, state.cache, token, reads, start.patch
    )
    return _extend(state, cache, logits, entropy, choose, room, drafting.max_entropy)

  state = jax.lax.while_loop(is_on, step, _begin(cache, first, room, length))
  source = dataclasses.replace(state.cache.source, cursor=state.trail)
  cache = dataclasses.replace(state.cache, cursor=start, source=source)
  return Draft(state.tokens, state.count, state.entropies, cache)


def _begin(cache, first, room, length) -> _State:
  """Drafts of which nothing is read."""
  batch = len(first)
  return _State(
    step=jnp.zeros((), jnp.int32),
    cache=cache,
    tokens=jnp.zeros((batch, length), jnp.int32).at[:, 0].set(first),
    entropies=jnp.zeros((batch, length)),
    trail=jax.tree.map(lambda x: jnp.repeat(x[:, None], length + 1, 1), cache.source.cursor),
    count=jnp.zeros(batch, jnp.int32),
    goes_on=room > 0,
  )


def _read_one(drafting, reader, weights, cache, token, reads, num_latents):
  """Reads one byte of the rows that draft: cache, logits [B, V], entropies [B]."""
  if drafting.by == "decoder":
    at = cache.cursor.position
    logits, cache = reader.read(weights, cache, token[:, None], reads, num_latents=num_latents)
    cache = rewind(cache, reads)
    rows = jnp.arange(len(token))
    return cache, logits[:, 0], cache.entropies[rows, at]
  entropy, logits, source = reader.source.read(
    weights["source"], cache.source, token[:, None], reads
  )
  cache = dataclasses.replace(cache, source=rewind(source, reads))
  return cache, logits[:, 0], entropy[:, 0]


def _extend(state, cache, logits, entropy, choose, room, max_entropy) -> _State:
  """Takes what the newest byte gave into the draft, and the byte to follow it."""
  length = state.tokens.shape[1]
  index = jnp.where(state.goes_on, state.count, length + 1)  # there, nothing is written
  count = state.count + state.goes_on
  goes_on = state.goes_on & (entropy <= max_entropy) & (count < room) & (count < length)

  def put(buffer, values, index):
    return jax.vmap(lambda b, v, i: b.at[i].set(v, mode="drop"))(buffer, values, index)

  return _State(
    step=state.step + 1,
    cache=cache,
    tokens=put(state.tokens, choose(logits, index), index + 1),
    entropies=put(state.entropies, entropy, index),
    trail=jax.tree.map(
      lambda buffer, new: put(buffer, new, index + 1), state.trail, cache.source.cursor
    ),
    count=count,
    goes_on=goes_on,
  )
