"""A BLT whose patches a frozen entropy model makes in the step, on the device."""

import jax
import jax.numpy as jnp

from blt_jax import tokenizer
from blt_jax.models import own_patches
from blt_jax.models.blt import BLT
from blt_jax.models.byte_lm import ByteLM
from blt_jax.models.config import BLTConfig, ByteLMConfig
from blt_jax.models.extras import Extras
from blt_jax.ops import losses
from blt_jax.ops.precision import exact_products
from blt_jax.patching import PatchingConfig


def measure(
  config: ByteLMConfig, params: jax.Array, tokens: jax.Array, reset_at_newline: bool = False
) -> tuple[jax.Array, jax.Array]:
  """Entropies and states of rows, each document read as if it were alone.

  Args:
    config: of the entropy model.
    params: its parameters, a tree; no gradient passes to them.
    tokens: int [B, S].
    reset_at_newline: the context begins anew after each newline byte.

  Returns:
    float32 [B, S] nats, of the predictions made at the bytes; and [B, S, d], the states that
    these are made of.
  """
  ends = tokens == tokenizer.EOS_ID
  if reset_at_newline:
    ends |= tokens == tokenizer.NEWLINE_ID
  contexts = jnp.cumsum(ends, axis=1) - ends
  begins = jnp.pad(ends[:, :-1], ((0, 0), (1, 0)), constant_values=True)
  # Rotations by places in a document are those of the host; small angles are the more exact.
  arguments = tokens, contexts, own_patches.positions(begins)
  with exact_products(config.dtype):
    params = jax.lax.stop_gradient(params)
    model = ByteLM(config, parent=None)  # whose parameters are not the BLT's
    states, logits = model.apply({"params": params}, *arguments, method=_read)
  return losses.entropy_nats(logits), states


def _read(
  model: ByteLM, tokens: jax.Array, documents: jax.Array, positions: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """States [B, S, d] after the last norm, and logits [B, S, V]."""
  x, _ = model.transformer.resume(model.embed(tokens), documents, positions, None)
  return model.norm(x), model.predict(x)


class DevicePatchedBLT(BLT):
  """A BLT that reads rows of bytes whose patches it makes itself, by a given entropy model.

  Its parameters are those of the BLT. The patches of a document are those of its entropies
  read from its beginning, but for one that goes on from another row.

  Attributes:
    config: of the BLT.
    entropy_config: of the entropy model.
    rule: of the entropy scheme, with a threshold.
  """

  config: BLTConfig
  entropy_config: ByteLMConfig
  rule: PatchingConfig

  def forward(
    self,
    tokens: jax.Array,
    patch_lengths: jax.Array,
    ngram_ids: jax.Array | None = None,
    *,
    entropy_params: jax.Array,
  ) -> tuple[jax.Array, Extras]:
    """Logits [B, S, V] as of a BLT, and the patches that were made.

    Args:
      tokens: int [B, S].
      patch_lengths: int [B, P]; only P, the slots of a row, has an effect.
      ngram_ids: as of a BLT.
      entropy_params: of the entropy model, a tree.
    """
    entropies, states = measure(
      self.entropy_config, entropy_params, tokens, self.rule.reset_at_newline
    )
    num_slots = patch_lengths.shape[1]
    patches = own_patches.of_entropies(tokens, entropies, self.rule, num_slots)
    ids = patches.ids, patches.decoder_ids
    read = states if self.config.entropy_state_dim else None
    logits, _ = self.run(tokens, *ids, num_slots, ngram_ids, read)
    metrics = own_patches.counts(tokens, patches) | {"cut_inputs": count_cut(tokens)}
    return logits, Extras(metrics, patches.has_slots, {}, patches.lengths)


def count_cut(tokens: jax.Array) -> jax.Array:
  """How many bytes of [B, S] are of a document that has begun in another row: float32 []."""
  place = own_patches.positions(own_patches.begin_documents(tokens))
  first = jnp.take_along_axis(tokens, jnp.arange(tokens.shape[1])[None] - place, axis=1)
  is_cut = (first != tokenizer.BOS_ID) & (tokens != tokenizer.BOE_ID)
  return is_cut.sum(dtype=jnp.float32)
