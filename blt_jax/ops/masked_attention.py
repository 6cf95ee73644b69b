"""Softmax attention of queries to the keys that a mask shows them."""

import jax
import jax.numpy as jnp
import numpy as np

_MASKED = np.finfo(np.float32).min


def masked_attention(
  query: jax.Array, key: jax.Array, value: jax.Array, visible: jax.Array | np.ndarray
) -> jax.Array:
  """Softmax attention over the leading axes.

  Args:
    query: [..., Q, G, R, H].
    key: [..., K, G, H].
    value: [..., K, G, H].
    visible: bool [..., Q, K]; a query that sees nothing gets some average.

  Returns:
    [..., Q, G, R, H] in the dtype of `query`; softmax in float32.
  """
  scores = jnp.einsum("...qgrh,...kgh->...grqk", query, key, preferred_element_type=jnp.float32)
  scores = scores * query.shape[-1] ** -0.5
  scores = jnp.where(visible[..., None, None, :, :], scores, _MASKED)
  weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
  return jnp.einsum("...grqk,...kgh->...qgrh", weights, value).astype(query.dtype)
