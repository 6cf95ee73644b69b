"""Cross entropy and entropy, in nats and float32."""

import jax
import jax.numpy as jnp


def cross_entropy_nats(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """Negative log-probability of each target.

  Args:
    logits: [..., V].
    targets: int [...].

  Returns:
    float32 [...], nats.
  """
  log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
  return -jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]


def entropy_nats(logits: jax.Array) -> jax.Array:
  """Entropy of the predicted distribution: float32 [...] nats from logits [..., V]."""
  log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
  probs = jnp.exp(log_probs)
  return -jnp.sum(jnp.where(probs > 0, probs * log_probs, 0), axis=-1)
