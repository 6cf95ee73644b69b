"""A plain language model over bytes: the entropy model and the flat baselines."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from blt_jax.models import layers, transformer
from blt_jax.models.config import ByteLMConfig


class ByteLM(nn.Module):
  """Embedding, blocks, norm, output (Meta `transformer.py` `LMTransformer`)."""

  config: ByteLMConfig

  @nn.compact
  def __call__(self, tokens: jax.Array) -> jax.Array:
    """Predicts the next token at every position.

    Args:
      tokens: int [B, S].

    Returns:
      float32 logits [B, S, V].
    """
    c = self.config
    table = layers.Embedding(c.vocab_size, c.transformer.dim, name="embedding")()
    documents = transformer.document_ids(tokens, c.eos_id) if c.document_masks else None
    x = table[tokens].astype(c.dtype)
    x = transformer.Transformer(c.transformer, name="transformer")(x, documents)
    x = layers.RMSNorm(c.transformer.norm_epsilon, name="norm")(x)
    if c.tie_embeddings:
      return jnp.dot(x, table.T.astype(x.dtype)).astype(jnp.float32)
    logits = layers.Linear(c.vocab_size, ("embed", "vocab"), name="output")(x)
    return logits.astype(jnp.float32)
