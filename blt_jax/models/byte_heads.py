"""The loss of heads that predict bytes around the one that they stand at."""

import jax
import jax.numpy as jnp
import numpy as np

from blt_jax import tokenizer
from blt_jax.models import transformer
from blt_jax.ops import losses


def sum_nats(
  tokens: jax.Array, logits: jax.Array, is_late: bool
) -> tuple[jax.Array, jax.Array]:
  """Cross entropy of heads, over what is in their document.

  Args:
    tokens: int [B, S].
    logits: float32 [B, S, n, V]; head i at t predicts byte t - n + 1 + i, or if not late byte
      t + 1 + i.
    is_late: which of them.

  Returns:
    float32 [] nats, and float32 [] how many predictions they are of.
  """
  (_, seq_len), num_heads = tokens.shape, logits.shape[2]
  documents = transformer.document_ids(tokens, tokenizer.EOS_ID)
  is_byte = tokens != tokenizer.BOE_ID
  nats, count = jnp.zeros(()), jnp.zeros(())
  for i in range(num_heads):
    offset = i + 1 - num_heads if is_late else i + 1
    at = np.arange(seq_len) + offset
    inside = ((at >= 0) & (at < seq_len))[None]
    at = np.clip(at, 0, seq_len - 1)
    is_known = inside & (documents[:, at] == documents) & is_byte & is_byte[:, at]
    found = losses.cross_entropy_nats(logits[:, :, i], tokens[:, at])
    nats += jnp.where(is_known, found, 0).sum()
    count += is_known.sum(dtype=jnp.float32)
  return nats, count
