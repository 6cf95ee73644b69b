"""A plain language model over bytes or pieces: the entropy model and the flat baselines."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from blt_jax.models import layers, transformer
from blt_jax.models.config import ByteLMConfig
from blt_jax.ops import attention


class ByteLM(nn.Module):
  """Embedding, blocks, norm, output (Meta `transformer.py` `LMTransformer`)."""

  config: ByteLMConfig
  batch_keys = ()  # what it may take beside tokens
  row_multiple = 1  # what divides rows, and places of documents in them

  def setup(self):
    c = self.config
    self.embedding = layers.Embedding(c.vocab_size, c.transformer.dim)
    self.transformer = transformer.Transformer(c.transformer)
    self.norm = layers.RMSNorm(c.transformer.norm_epsilon)
    if not c.tie_embeddings:
      self.output = layers.Linear(c.vocab_size, ("embed", "vocab"))

  def __call__(self, tokens: jax.Array, patch_lengths: jax.Array | None = None) -> jax.Array:
    """Predicts the next token at every position.

    Args:
      tokens: int [B, S].
      patch_lengths: of no effect; all models are called alike.

    Returns:
      float32 logits [B, S, V].
    """
    del patch_lengths
    c = self.config
    documents = transformer.document_ids(tokens, c.eos_id) if c.document_masks else None
    return self.resume(tokens, documents, jnp.arange(tokens.shape[1]), None)[0]

  def resume(
    self,
    tokens: jax.Array,
    document_ids: jax.Array | None,
    positions: jax.Array,
    past: attention.Past | None,
  ) -> tuple[jax.Array, attention.Past | None]:
    """Predicts within a row that goes on after others; see `Transformer.resume`.

    Args:
      tokens: int [B, S].
      document_ids: int [B, S]; attention stays inside documents.
      positions: int [B, S] of the tokens in their documents.
      past: what the layers kept of the rows before; `transformer.empty_past` at first.

    Returns:
      float32 logits [B, S, V], and the past of what follows.
    """
    x = self.embed(tokens)
    x, past = self.transformer.resume(x, document_ids, positions, past)
    return self.predict(x), past

  def embed(self, tokens: jax.Array) -> jax.Array:
    """What the blocks read: ids [B, S] -> [B, S, D]."""
    return self.embedding()[tokens].astype(self.config.dtype)

  def predict(self, x: jax.Array) -> jax.Array:
    """What follows states: [B, S, D] after the last block -> float32 logits [B, S, V]."""
    x = self.norm(x)
    if self.config.tie_embeddings:
      return jnp.dot(x, self.embedding().T.astype(x.dtype)).astype(jnp.float32)
    return self.output(x).astype(jnp.float32)
