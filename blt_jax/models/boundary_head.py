"""A BLT with a head that learns where patches start, and one that takes its word for it."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from blt_jax import patching, tokenizer
from blt_jax.models import layers, own_patches
from blt_jax.models.blt import BLT
from blt_jax.models.config import BLTConfig
from blt_jax.models.extras import Extras
from blt_jax.patching import PatchingConfig


def check(config: BLTConfig) -> None:
  """Raises ValueError where a model has no head."""
  if not config.boundary_weight:
    raise ValueError(
      "The model has no boundary head to patch by; train one with config.model.boundary_weight "
      "above 0, or name an entropy model."
    )


class BoundaryHead(nn.Module):
  """Says of each byte whether the next one starts a patch, in float32."""

  epsilon: float

  @nn.compact
  def __call__(self, states: jax.Array) -> jax.Array:
    """Scores float32 [B, S] of byte states [B, S, D]; log odds, above 0 for a start."""
    x = layers.RMSNorm(self.epsilon, name="norm")(states.astype(jnp.float32))
    bias = nn.with_logical_partitioning(nn.initializers.zeros, ("norm",))
    scores = layers.Linear(1, ("embed", None), name="output")(x)[..., 0]
    return scores + self.param("bias", bias, (1,), jnp.float32)[0]


class BoundaryBLT(BLT):
  """A BLT whose head learns the boundaries of given patches, beside the loss."""

  def setup(self):
    super().setup()
    self.boundary_head = BoundaryHead(self.config.encoder.norm_epsilon)

  def __call__(
    self,
    tokens: jax.Array,
    patch_lengths: jax.Array | None = None,
    ngram_ids: jax.Array | None = None,
    entropy_states: jax.Array | None = None,
  ) -> jax.Array:
    """Logits [B, S, V]; see `BLT`."""
    if self.is_initializing():
      self.boundary_head(jnp.zeros((1, 1, self.config.encoder.dim)))
    return super().__call__(tokens, patch_lengths, ngram_ids, entropy_states)

  def forward(
    self, tokens: jax.Array, patch_lengths: jax.Array, ngram_ids: jax.Array | None = None
  ) -> tuple[jax.Array, Extras]:
    """Logits [B, S, V] as of a BLT, and the loss of the head; arguments as of a call."""
    c, seq_len = self.config, tokens.shape[1]
    ids = patching.patch_ids(patch_lengths, seq_len + 1)  # the next byte included
    decoder_ids = patching.decoder_patch_ids(patch_lengths, seq_len)
    num_patches = patch_lengths.shape[1]
    logits, states = self.run(tokens, ids[:, :-1], decoder_ids, num_patches, ngram_ids)
    scores = self.boundary_head(
      states if c.boundary_gradient else jax.lax.stop_gradient(states)
    )
    metrics = _compare(tokens, scores, ids[:, 1:] != ids[:, :-1])
    return logits, Extras(
      metrics, None, {"boundary": c.boundary_weight * metrics["boundary_nats"]}
    )


def _compare(tokens: jax.Array, scores: jax.Array, starts: jax.Array) -> dict[str, jax.Array]:
  """Sums float32 [] over the bytes of [B, S] whose next byte starts a patch or not by no rule.

  That is, the next byte is neither the first nor the second of a document.
  """
  is_open = (tokens != tokenizer.EOS_ID) & (tokens != tokenizer.BOE_ID)
  is_open &= ~own_patches.begin_documents(tokens)
  nats = jax.nn.softplus(jnp.where(starts, -scores, scores))
  found = {
    "boundary_nats": jnp.where(is_open, nats, 0),
    "boundary_targets": is_open,
    "boundary_hits": is_open & ((scores > 0) == starts),
    "boundary_starts": is_open & starts,
    "boundary_found": is_open & starts & (scores > 0),
  }
  return {name: values.sum(dtype=jnp.float32) for name, values in found.items()}


class HeadPatchedBLT(BoundaryBLT):
  """A BLT that reads rows of bytes whose patches it makes itself, by its boundary head.

  Attributes:
    rule: a patch starts where log odds are above its `threshold`, and where its
      `max_patch_length` cuts; nothing else of it counts.
  """

  rule: PatchingConfig = PatchingConfig(threshold=0.0)

  def forward(
    self, tokens: jax.Array, patch_lengths: jax.Array, ngram_ids: jax.Array | None = None
  ) -> tuple[jax.Array, Extras]:
    """Logits [B, S, V] as of a BLT, and the patches that were made.

    Args:
      tokens: int [B, S].
      patch_lengths: int [B, P]; only P, the slots of a row, has an effect.
      ngram_ids: as of a BLT.
    """
    num_slots = patch_lengths.shape[1]
    patches, _ = self.patch(tokens, num_slots, ngram_ids)
    ids = patches.ids, patches.decoder_ids
    logits, _ = self.run(tokens, *ids, num_slots, ngram_ids)
    metrics = own_patches.counts(tokens, patches)
    return logits, Extras(metrics, patches.has_slots, {}, patches.lengths)

  def patch(
    self, tokens: jax.Array, num_slots: int, ngram_ids: jax.Array | None = None
  ) -> tuple[own_patches.OwnPatches, jax.Array]:
    """The patches of ids [B, S] in P slots, and the scores float32 [B, S] that make them."""
    x = self.embed(tokens, ngram_ids)
    # Byte states do not depend on patches.
    states, _ = self.encode_embeddings(tokens, x, jnp.zeros_like(tokens), 1)
    scores = self.boundary_head(states)
    starts, most = scores > self.rule.threshold, self.rule.max_patch_length
    return own_patches.find(tokens, starts, num_slots, False, most), scores
