"""Attention of whole rows to themselves, all scores at once: the form of plain XLA."""

import jax
import jax.numpy as jnp

from blt_jax.ops import head_attention


@jax.custom_vjp
def full_attention(
  query: jax.Array, key: jax.Array, value: jax.Array, seen: jax.Array
) -> jax.Array:
  """Softmax attention of each query to the keys that it sees.

  Args:
    query: [B, S, N, H].
    key: [B, S, G, H]; each of the G heads serves N / G adjacent query heads.
    value: [B, S, G, H].
    seen: bool [B or 1, S, S], for each query some keys.

  Returns:
    [B, S, N, H] in the dtype of `query`; softmax in float32.
  """
  return _forward(query, key, value, seen)[0]


def _forward(query, key, value, seen):
  heads = _heads_first(query, key.shape[2]), key.swapaxes(1, 2), value.swapaxes(1, 2)
  output, logsumexps = head_attention.attend(*heads, seen)
  return _heads_last(output, query.shape), (query, key, value, seen, output, logsumexps)


def _backward(residuals, cotangent):
  query, key, value, seen, output, logsumexps = residuals
  heads = _heads_first(query, key.shape[2]), key.swapaxes(1, 2), value.swapaxes(1, 2)
  into = _heads_first(cotangent, key.shape[2])
  means = head_attention.means(output, into)
  of_query, of_key, of_value = head_attention.differentiate(
    *heads, seen, logsumexps, means, into
  )
  of_query = _heads_last(of_query, query.shape).astype(query.dtype)
  return of_query, *(x.swapaxes(1, 2).astype(key.dtype) for x in (of_key, of_value)), None


full_attention.defvjp(_forward, _backward)


def _heads_first(x, groups):
  """[B, S, N, H] -> [B, G, R * S, H]."""
  batch, seq_len, _, width = x.shape
  x = x.reshape(batch, seq_len, groups, -1, width).transpose(0, 2, 3, 1, 4)
  return x.reshape(batch, groups, -1, width)


def _heads_last(x, shape):
  """The other way round, to `shape`."""
  batch, seq_len, _, width = shape
  x = x.reshape(batch, x.shape[1], -1, seq_len, width)
  return jnp.moveaxis(x, 3, 1).reshape(shape)
