"""Attention of heads that stand in front of their rows, and its gradient: [..., G, R * Q, H].

Both are products that a CPU reads as they lie in memory. The backward pass makes the scores
again, from the logarithms of their sums: that is faster there than to keep them.
"""

import jax
import jax.numpy as jnp
import numpy as np

SAVED_AS = "attention"  # what a remat policy may save: outputs, and logarithms of sums
_MASKED = float(np.finfo(np.float32).min)


def by_heads(x: jax.Array, groups: int) -> jax.Array:
  """[B, S, N, n] -> [B, G, R, S, n], R heads for each of `groups` heads of keys."""
  batch, seq_len, _, width = x.shape
  return x.reshape(batch, seq_len, groups, -1, width).transpose(0, 2, 3, 1, 4)


def by_positions(x: jax.Array) -> jax.Array:
  """The other way round, [B, G, R, S, n] -> [B, S, N, n]."""
  return x.transpose(0, 3, 1, 2, 4).reshape(x.shape[0], x.shape[3], -1, x.shape[-1])


def attend(
  query: jax.Array, key: jax.Array, value: jax.Array, seen: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Softmax attention, in float32.

  Args:
    query: [..., G, R * Q, H], R heads of Q queries for each head of keys.
    key: [..., G, K, H].
    value: [..., G, K, H].
    seen: bool [..., Q, K], for each query some keys.

  Returns:
    [..., G, R * Q, H] in the dtype of `query`, and the logarithms of the sums of weights,
    float32 [..., G, R * Q].
  """
  scores = _scores(query, key, seen)
  largest = scores.max(axis=-1, keepdims=True)
  weights = jnp.exp(scores - largest)
  total = weights.sum(axis=-1, keepdims=True)
  mixed = _product("...qk,...kh->...qh", weights.astype(value.dtype), value)
  return (mixed / total).astype(query.dtype), (largest + jnp.log(total))[..., 0]


def means(output: jax.Array, cotangent: jax.Array) -> jax.Array:
  """What `differentiate` wants of outputs [..., H] and their gradient: float32 [..., 1]."""
  return (cotangent.astype(jnp.float32) * output).sum(axis=-1, keepdims=True)


def differentiate(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  seen: jax.Array,
  logsumexps: jax.Array,
  means: jax.Array,
  cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The gradients of query, key and value, float32.

  Args:
    query: as of `attend`, and so the next three.
    key: see above.
    value: see above.
    seen: see above.
    logsumexps: what `attend` gave.
    means: float32 [..., G, R * Q, 1].
    cotangent: [..., G, R * Q, H], that of the output.
  """
  weights = jnp.exp(_scores(query, key, seen) - logsumexps[..., None])
  from_values = _product("...qh,...kh->...qk", cotangent, value)
  of_scores = weights * (from_values - means) * query.shape[-1] ** -0.5
  of_scores = of_scores.astype(query.dtype)
  of_key = _product("...qk,...qh->...kh", of_scores, query)
  of_value = _product("...qk,...qh->...kh", weights.astype(query.dtype), cotangent)
  return _product("...qk,...kh->...qh", of_scores, key), of_key, of_value


def _scores(query, key, seen):
  """Scaled products float32 [..., G, R * Q, K], masked where a query does not look."""
  scores = _product("...qh,...kh->...qk", query, key) * query.shape[-1] ** -0.5
  by_query = scores.reshape(*scores.shape[:-2], -1, *seen.shape[-2:])
  return jnp.where(seen[..., None, None, :, :], by_query, _MASKED).reshape(scores.shape)


def _product(letters: str, left: jax.Array, right: jax.Array) -> jax.Array:
  return jnp.einsum(letters, left, right, preferred_element_type=jnp.float32)
