"""SpaceByte: layers over bytes, and wider ones in their midst where words begin.

arXiv 2404.14408.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from blt_jax import patching, tokenizer
from blt_jax.models import layers, partitioning, transformer
from blt_jax.models.config import TransformerConfig
from blt_jax.models.extras import Extras


@dataclasses.dataclass(frozen=True)
class SpaceByteConfig:
  """A SpaceByte (arXiv 2404.14408): layers over bytes, and global ones where words begin.

  Attributes:
    local_model: the stack over bytes; half of its layers stand before the global ones, half
      after them.
    global_model: the stack over global positions, at least as wide.
    num_patches: slots for the global positions of a row; None for all that there can be.
    vocab_size: V.
    dtype: of activations; parameters are float32.
  """

  local_model: TransformerConfig
  global_model: TransformerConfig
  num_patches: int | None = None
  vocab_size: int = tokenizer.VOCAB_SIZE
  dtype: str = "float32"

  def __post_init__(self):
    if self.local_model.num_layers < 2:
      raise ValueError(
        f"local_model.num_layers is {self.local_model.num_layers}; it must be >= 2, some "
        "before and some after the global layers."
      )
    if self.global_model.dim < self.local_model.dim:
      raise ValueError(
        f"global_model.dim {self.global_model.dim} must be at least local_model.dim "
        f"{self.local_model.dim}: byte states are padded to it."
      )
    if self.num_patches is not None and self.num_patches < 1:
      raise ValueError(f"num_patches is {self.num_patches}; it must be >= 1, or None for all.")

  @property
  def initial(self) -> TransformerConfig:
    """The local layers before the global ones."""
    return dataclasses.replace(self.local_model, num_layers=self.local_model.num_layers // 2)

  @property
  def final(self) -> TransformerConfig:
    """The local layers after the global ones."""
    return dataclasses.replace(
      self.local_model, num_layers=self.local_model.num_layers - self.initial.num_layers
    )

  def global_slots(self, seq_len: int) -> int:
    """Global positions that a row of `seq_len` bytes has room for."""
    return min(self.num_patches or seq_len, seq_len)


class SpaceByte(nn.Module):
  """Local layers, global ones at the global positions, local layers.

  What a global position at t gives is added to the byte at t, hence to the prediction of the
  byte at t + 1. Global positions for which a row has no slot are bytes as others are, and
  what comes from the first of them on does not count in the loss.
  """

  config: SpaceByteConfig
  batch_keys = ()  # what it may take beside tokens
  row_multiple = 1  # what divides rows, and places of documents in them

  def setup(self):
    c = self.config
    self.embedding = layers.Embedding(c.vocab_size, c.local_model.dim)
    self.initial = transformer.Transformer(c.initial)
    self.global_transformer = transformer.Transformer(c.global_model)
    self.final = transformer.Transformer(c.final)
    self.norm = layers.RMSNorm(c.local_model.norm_epsilon)
    self.output = layers.Linear(c.vocab_size, ("embed", "vocab"))

  def __call__(self, tokens: jax.Array, patch_lengths: jax.Array | None = None) -> jax.Array:
    """Predicts the next byte at every position.

    Args:
      tokens: int [B, S].
      patch_lengths: of no effect; all models are called alike.

    Returns:
      float32 logits [B, S, V].
    """
    del patch_lengths
    documents = transformer.document_ids(tokens, tokenizer.EOS_ID)
    x = self.embedding()[tokens].astype(self.config.dtype)
    x = partitioning.constrain(x, *partitioning.STATES)
    x = self.initial(x, documents)
    x = x + self._think(x, global_positions(tokens), documents)
    x = self.final(x, documents)
    return self.output(self.norm(x)).astype(jnp.float32)

  def forward(self, tokens: jax.Array, patch_lengths: Any = None) -> tuple[jax.Array, Extras]:
    """Logits [B, S, V] as of a call, counts of global positions, and where slots last."""
    marked = global_positions(tokens)
    num_slots = self.config.global_slots(tokens.shape[1])
    has_slots = jnp.cumsum(marked, axis=1) <= num_slots  # [B, S]
    is_used = marked & has_slots & (tokens != tokenizer.BOE_ID)
    counts = {
      "patches": is_used.sum(dtype=jnp.float32),
      "one_byte_patches": jnp.zeros(()),
      "patch_slots": jnp.float32(len(tokens) * num_slots),
    }
    return self(tokens, patch_lengths), Extras(counts, has_slots)

  def _think(self, x: jax.Array, marked: jax.Array, documents: jax.Array) -> jax.Array:
    """What the global layers add to the byte states [B, S, d], 0 for most."""
    c, (_, seq_len, dim) = self.config, x.shape
    num_slots = c.global_slots(seq_len)

    # The states at global positions, filled up on the left; empty slots come last.
    def find(row):
      return jnp.nonzero(row, size=num_slots, fill_value=seq_len - 1)[0]

    at = jax.vmap(find)(marked)  # [B, P]
    states = jnp.take_along_axis(x, at[..., None], axis=1)
    wide = jnp.pad(states, ((0, 0), (0, 0), (c.global_model.dim - dim, 0)))  # [B, P, D]
    wide = partitioning.constrain(wide, *partitioning.STATES)
    wide = self.global_transformer(wide, jnp.take_along_axis(documents, at, axis=1))

    # Back to where they came from.
    slot = jnp.cumsum(marked, axis=1) - 1  # [B, S]
    has_slot = marked & (slot < num_slots)
    slot = jnp.clip(slot, 0, num_slots - 1)
    added = jnp.take_along_axis(wide[..., -dim:], slot[..., None], axis=1)
    return jnp.where(has_slot[..., None], added, 0)


def global_positions(tokens: jax.Array) -> jax.Array:
  """Marks what begins a run of bytes that are no letters or digits, and every BOS.

  A document does not know of those before it: its first id stands after none.

  Args:
    tokens: int [B, S].

  Returns:
    bool [B, S].
  """
  before = jnp.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=tokenizer.EOS_ID)
  return is_global(tokens, before)


def is_global(tokens: jax.Array, before: jax.Array) -> jax.Array:
  """Whether ids [B, S] that stand after the ids `before` [B, S] are global: bool [B, S]."""
  is_first = (before == tokenizer.EOS_ID) | ~patching.is_spacelike(before)
  return (patching.is_spacelike(tokens) & is_first) | (tokens == tokenizer.BOS_ID)
