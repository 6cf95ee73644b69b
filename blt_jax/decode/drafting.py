"""Drafts of the bytes to come, for the model to verify in one read.

A draft changes the speed alone: a byte is kept where it is what the model draws itself.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from blt_jax.decode.blt import Known
from blt_jax.decode.blt_cache import BLTCache
from blt_jax.decode.reader import Pending, Reader
from blt_jax.decode.weights import BLTWeights

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


def check_drafting(drafting: Drafting, reader: Reader) -> None:
  """Raises ValueError unless a reader can draft so."""
  if not reader.drafters:
    raise ValueError(
      "A draft ends where the next byte is uncertain, so it needs a BLT of one resolution "
      "with entropies (patching scheme entropy); generate without drafts."
    )
  if drafting.by not in reader.drafters:
    raise ValueError(
      f"This model's entropies come from a table, which cannot draft bytes; draft by "
      f"{' or '.join(map(repr, reader.drafters))}, or not at all."
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _State:
  """A draft of up to C bytes in the making."""

  step: jax.Array  # int32 []
  cache: BLTCache  # of rows that have read it, the entropy source alone or all
  tokens: jax.Array  # int32 [B, C], the newest of which is not read yet
  entropies: jax.Array  # float32 [B, C], of the predictions made at them
  trail: Any  # cursors of the entropy source [B, C + 1], before the draft and after each byte
  count: jax.Array  # int32 [B], bytes read
  goes_on: jax.Array  # bool [B]


def draft(
  drafting: Drafting,
  reader: Any,
  weights: BLTWeights,
  cache: BLTCache,
  first: jax.Array,
  room: jax.Array,
  choose: Choose,
) -> tuple[jax.Array, jax.Array, jax.Array, Pending]:
  """Drafts bytes and reads them, which verifies them.

  Args:
    drafting: how.
    reader: a `BLTReader` that `check_drafting` lets pass.
    weights: of the reader.
    cache: of the reader.
    first: int [B], the byte to begin with.
    room: int [B], bytes that a row may still have; 0 for rows that rest.
    choose: draws the byte after the one at `index` in the draft.

  Returns:
    Bytes int32 [B, C]; int32 [B], how many of the C are meant; the model's logits float32
    [B, C, V] of the byte after each; and what gives the cache of rows that take some.
  """
  length = drafting.length

  def is_on(state):
    return (state.step < length) & jnp.any(state.goes_on)

  def step(state):
    reads = state.goes_on.astype(jnp.int32)  # a row that has stopped reads nothing more
    token = state.tokens[jnp.arange(len(first)), jnp.minimum(state.count, length - 1)]
    new_cache, logits, entropy = _read_one(
      drafting, reader, weights, state.cache, token, reads, cache.cursor.patch
    )
    return _extend(state, new_cache, logits, entropy, choose, room, drafting.max_entropy)

  state = jax.lax.while_loop(is_on, step, _begin(cache, first, room, length))

  # The rows go back to where they were; the entropy source need not read the draft again.
  known = Known(state.entropies, Pending(state.cache.source, state.trail))
  source = dataclasses.replace(state.cache.source, cursor=cache.source.cursor)
  cache = dataclasses.replace(state.cache, cursor=cache.cursor, source=source)
  logits, pending = reader.read(weights, cache, state.tokens, state.count, known)
  return state.tokens, state.count, logits, pending


def _begin(cache: BLTCache, first: jax.Array, room: jax.Array, length: int) -> _State:
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


def _read_one(
  drafting: Drafting,
  reader: Any,
  weights: BLTWeights,
  cache: BLTCache,
  token: jax.Array,
  reads: jax.Array,
  num_latents: jax.Array,
) -> tuple[BLTCache, jax.Array, jax.Array]:
  """Reads one byte of the rows that draft: cache, logits [B, V], entropies [B]."""
  if drafting.by == "decoder":
    rows, at = jnp.arange(len(token)), cache.cursor.position
    logits, pending = reader.read(
      weights, cache, token[:, None], reads, num_latents=num_latents
    )
    cache = pending.commit(reads)
    return cache, logits[:, 0], cache.entropies[rows, at]
  entropy, logits, pending = reader.source.read(
    weights.source, cache.source, token[:, None], reads
  )
  cache = dataclasses.replace(cache, source=pending.commit(reads))
  return cache, logits[:, 0], entropy[:, 0]


def _extend(
  state: _State,
  cache: BLTCache,
  logits: jax.Array,
  entropy: jax.Array,
  choose: Choose,
  room: jax.Array,
  max_entropy: float,
) -> _State:
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
