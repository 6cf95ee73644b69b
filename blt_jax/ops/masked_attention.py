"""Softmax attention of queries to the keys that a mask shows them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from blt_jax.ops import online_softmax

_LOWEST = float(np.finfo(np.float32).min)


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
  scores = _scores(query, key, visible, _LOWEST)
  weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
  return jnp.einsum("...grqk,...kgh->...qgrh", weights, value).astype(query.dtype)


def blockwise_attention(
  query: jax.Array,
  read: Callable[[jax.Array], tuple[jax.Array, jax.Array, jax.Array]],
  num_blocks: jax.Array,
) -> jax.Array:
  """Softmax attention to keys that are read a block at a time.

  Args:
    query: [..., Q, G, R, H].
    read: gives a block by its number: key and value [..., K, G, H], and bool [..., Q, K],
      what is visible.
    num_blocks: int [], the first of which is always read.

  Returns:
    [..., Q, G, R, H] in the dtype of `query`, zeros for a query that sees nothing;
    softmax in float32.
  """

  def add(block, state):
    key, value, visible = read(block)
    scores = _scores(query, key, visible, online_softmax.MASKED, online_softmax.LOG2_E)

    def mix(weights):
      return jnp.einsum(
        "...grqk,...kgh->...grqh", weights.astype(value.dtype), value,
        preferred_element_type=jnp.float32,
      )  # fmt: skip

    return online_softmax.add(state, scores, mix)

  *lead, length, groups, repeats, head_dim = query.shape
  nothing = online_softmax.nothing((*lead, groups, repeats, length), head_dim)
  # The first is not asked for: on a GPU the host waits for each answer.
  _, total, mixed = jax.lax.fori_loop(1, num_blocks, add, add(0, nothing))
  mixed = mixed / jnp.where(total > 0, total, 1)[..., None]
  return jnp.moveaxis(mixed, -2, -4).astype(query.dtype)


def _scores(
  query: jax.Array,
  key: jax.Array,
  visible: jax.Array | np.ndarray,
  masked: float,
  factor: float = 1.0,
) -> jax.Array:
  """Scaled products float32 [..., G, R, Q, K] times `factor`, `masked` where not visible."""
  scores = jnp.einsum("...qgrh,...kgh->...grqk", query, key, preferred_element_type=jnp.float32)
  scale = query.shape[-1] ** -0.5 * factor
  return jnp.where(visible[..., None, None, :, :], scores * scale, masked)
