"""A BLT that reads on from caches and patches by its boundary head: no entropy model."""

import dataclasses

import jax
import jax.numpy as jnp

from blt_jax.decode import blt_cache, blt_parts
from blt_jax.decode.blt import BLTReader, Known
from blt_jax.decode.blt_cache import BLTCache
from blt_jax.decode.cursor import advance_cursor
from blt_jax.decode.reader import Pending, WithoutPatches
from blt_jax.decode.weights import BLTWeights
from blt_jax.ops.decode_layers import norm_linear
from blt_jax.patching import PatchingConfig


@dataclasses.dataclass(frozen=True)
class HeadReader(BLTReader):
  """Reads bytes with a `BoundaryBLT`, by the threshold, of log odds, and the longest patch."""

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
    c, cursor = self.config, cache.cursor
    threshold, most = self.patching.threshold, self.patching.max_patch_length
    rule = PatchingConfig(threshold=threshold, max_patch_length=most)

    # The encoder, then patches by what the head says of its states.
    _, trail = advance_cursor(rule, cursor, tokens, jnp.zeros(tokens.shape), by_document=True)
    span = self._span(cursor, count, trail.document[:, :-1])
    x, cache = blt_parts.encode_bytes(c, weights, cache, tokens, span)
    scores = self._score(weights, x)
    begins, trail = advance_cursor(rule, cursor, tokens, scores, by_document=True)
    cache = blt_cache.write_bytes(c, cache, tokens, count, scores, begins, trail)

    # The patches that have closed, and the decoder.
    closed = jnp.take_along_axis(trail.patch, count[:, None], axis=1)[:, 0]
    block = -(-tokens.shape[1] // 4)
    cache = blt_parts.add_closed_patches(c, weights, cache, closed, block)
    newest = trail.patch[:, 1:] - 1
    logits, cache = blt_parts.decode_bytes(c, weights, cache, x, newest, span)
    return logits, Pending(cache, trail)

  read_byte = WithoutPatches.read_byte  # no row waits

  def _score(self, weights: BLTWeights, x: jax.Array) -> jax.Array:
    """Scores float32 [B, C] of byte states [B, C, D]."""
    assert weights.boundary_head is not None  # as `from_blt` has seen to
    norm, row, bias = weights.boundary_head
    x = x.astype(jnp.float32)
    return norm_linear(x, norm, self.config.encoder.norm_epsilon, row)[..., 0] + bias
