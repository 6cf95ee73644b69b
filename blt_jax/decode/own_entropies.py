"""A BLT whose own predictions say where patches end: no entropy model, and no head."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from blt_jax.decode import blt_cache, blt_parts
from blt_jax.decode.blt import BLTReader, Known
from blt_jax.decode.blt_cache import BLTCache
from blt_jax.decode.cursor import Cursor, advance_cursor
from blt_jax.decode.from_params import blt_weights
from blt_jax.decode.reader import Pending, WithoutPatches
from blt_jax.decode.weights import BLTWeights
from blt_jax.models import own_patches, partitioning
from blt_jax.models.blt import BLT
from blt_jax.models.extras import Extras
from blt_jax.ops import losses
from blt_jax.ops.ring_attention import write_ring
from blt_jax.patching import PatchingConfig


def check(rule: PatchingConfig) -> None:
  """Raises ValueError where a rule cannot go by own entropies."""
  if rule.scheme != "entropy":
    raise ValueError(f"Own entropies go with the entropy scheme, and this is {rule.scheme!r}.")
  if rule.is_top_k:
    raise ValueError(
      "Patches by own entropies need a threshold in nats, and the run's are top-k patches: "
      "give --threshold."
    )
  if rule.reset_at_newline:
    raise ValueError(
      "The run has patches of entropies with reset_at_newline=True, and its own entropies "
      "never begin anew: give an entropy model, or train it on its own entropies first."
    )


@dataclasses.dataclass(frozen=True)
class OwnReader(BLTReader):
  """Reads bytes with a `BLT` that patches by its own entropies, byte by byte.

  In a BLT the decoder reads a patch at its last byte already, where it predicts the first one
  of the next. So what it predicts there cannot say that the patch ends there. It predicts
  twice: first with the patches that have ended for certain. If the entropy of that makes the
  rule start a patch with the next byte, the patch ends, the latent transformer reads it, and
  the decoder predicts again. Only that prediction counts, and later bytes attend to its states.

  Where a patch ends in any case, as after the first byte of a document, after its EOS and
  where `max_patch_length` cuts, the entropy is that of the second prediction.
  """

  @property
  def drafters(self) -> tuple[str, ...]:
    """See `Reader`."""
    return ()

  def read(
    self,
    weights: BLTWeights,
    cache: BLTCache,
    tokens: jax.Array,
    count: jax.Array,
    known: Known | None = None,
    num_latents: jax.Array | None = None,
  ) -> tuple[jax.Array, Pending]:
    """See `Reader`; what only drafting gives is of no effect."""
    del known, num_latents
    if tokens.shape[1] == 1:
      return self._read_one(weights, cache, tokens, count)

    def step(cache, column):
      token, number = column
      real = (number < count).astype(jnp.int32)
      logits, pending = self._read_one(weights, cache, token[:, None], real)
      cache = pending.commit(real)
      return cache, (logits[:, 0], cache.cursor)

    columns = tokens.T, jnp.arange(tokens.shape[1])
    end, (logits, cursors) = jax.lax.scan(step, cache, columns)
    trail = jax.tree.map(
      lambda first, rest: jnp.concatenate([first[None], rest]).swapaxes(0, 1),
      cache.cursor, cursors,
    )  # fmt: skip
    return logits.swapaxes(0, 1), Pending(dataclasses.replace(end, cursor=cache.cursor), trail)

  read_byte = WithoutPatches.read_byte  # no row waits

  def patches(self, cache: BLTCache) -> tuple[jax.Array, jax.Array]:
    """See `Reader`."""
    return super().patches(cache)[0], cache.entropies

  def _read_one(
    self, weights: BLTWeights, cache: BLTCache, tokens: jax.Array, count: jax.Array
  ) -> tuple[jax.Array, Pending]:
    """Reads ids [B, 1], of which `count` [B] are real; see `Reader`."""
    c, cursor = self.config, cache.cursor

    # What is predicted with the patches that have ended.
    span = self._span(cursor, count, cursor.document[:, None])
    x, cache = blt_parts.encode_bytes(c, weights, cache, tokens, span)
    newest = jnp.maximum(cursor.patch[:, None] - 1, 0)
    logits, cache = blt_parts.decode_bytes(c, weights, cache, x, newest, span)
    entropies = losses.entropy_nats(logits)

    # Bytes to patches.
    begins, trail = self._advance(cursor, tokens, entropies)
    cache = blt_cache.write_bytes(c, cache, tokens, count, entropies, begins, trail)
    closes = begins[:, 0] & (count > 0)
    new = closes.astype(jnp.int32)
    closing = dataclasses.replace(span, count=new)

    # The latent transformer and the decoder again, where a patch ends.
    def read_again(cache):
      rings, patches = blt_parts.add_patches(
        c, weights, cache, cursor.patch, new, 1, cache.latent, cache.patches
      )
      cache = dataclasses.replace(cache, latent=rings, patches=patches)
      newest = trail.patch[:, 1:] - 1
      after, cache = blt_parts.decode_bytes(c, weights, cache, x, newest, closing)
      return jnp.where(closes[:, None, None], after, logits), cache

    logits, cache = jax.lax.cond(
      jnp.any(closes), read_again, lambda cache: (logits, cache), cache
    )

    # Where a patch ends whatever the entropy, it is that of what is predicted then.
    is_certain = self._advance(cursor, tokens, jnp.full_like(entropies, -jnp.inf))[0]
    entropies = jnp.where(is_certain, losses.entropy_nats(logits), entropies)
    trail = self._advance(cursor, tokens, entropies)[1]
    noted = write_ring(cache.entropies, entropies, cursor.position, count)
    return logits, Pending(dataclasses.replace(cache, entropies=noted), trail)

  def _advance(
    self, cursor: Cursor, tokens: jax.Array, entropies: jax.Array
  ) -> tuple[jax.Array, Cursor]:
    """Patches ids [B, 1]; see `advance_cursor`."""
    return advance_cursor(self.patching, cursor, tokens, entropies, by_document=True)


class OwnPatchedBLT(BLT):
  """A BLT that reads rows of bytes whose patches it makes itself, by its own entropies.

  The bytes are read one after the other, as in generation, to find patches; logits are then
  those of the BLT under these.

  Attributes:
    rule: of the entropy scheme, with a threshold.
  """

  rule: PatchingConfig = PatchingConfig()

  def forward(
    self,
    tokens: jax.Array,
    patch_lengths: jax.Array,
    ngram_ids: jax.Array | None = None,
    *,
    ngram_keys: Sequence[Any] = (),
  ) -> tuple[jax.Array, Extras]:
    """Logits [B, S, V] as of a BLT, and the patches that were made.

    Args:
      tokens: int [B, S].
      patch_lengths: int [B, P]; only P, the slots of a row, has an effect.
      ngram_ids: as of a BLT.
      ngram_keys: of the frequency n-gram tables, where configured.
    """
    num_slots = patch_lengths.shape[1]
    patches, entropies = self.patch(tokens, num_slots, ngram_keys)
    ids = patches.ids, patches.decoder_ids
    logits, _ = self.run(tokens, *ids, num_slots, ngram_ids)
    metrics = own_patches.counts(tokens, patches)
    return logits, Extras(metrics, patches.has_slots, {}, patches.lengths, entropies)

  def patch(
    self, tokens: jax.Array, num_slots: int, ngram_keys: Sequence[Any] = ()
  ) -> tuple[own_patches.OwnPatches, jax.Array]:
    """The patches of ids [B, S] in P slots, and the entropies float32 [B, S] that make them."""
    c = self.config
    reader = OwnReader(c, self.rule, c.dtype)
    params = jax.lax.stop_gradient(self.variables["params"])
    weights = dataclasses.replace(blt_weights(c, params, c.dtype), ngram_keys=list(ngram_keys))
    read = partitioning.per_shard(
      functools.partial(_read_rows, reader), [(), ("batch", None)], (("batch", None),) * 2
    )
    fires, entropies = read(weights, tokens)
    return own_patches.find(tokens, fires, num_slots, False), entropies


def _read_rows(
  reader: OwnReader, weights: BLTWeights, tokens: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Of ids [B, S], whether the next byte starts a patch, bool [B, S], and entropies [B, S]."""
  rows, length = tokens.shape
  cache = reader.init(rows, length, 1)
  _, pending = reader.read(weights, cache, tokens, jnp.full(rows, length, jnp.int32))
  new = pending.trail.patch[:, 1:] > pending.trail.patch[:, :-1]
  return new, pending.cache.entropies
