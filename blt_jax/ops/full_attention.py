"""Attention of whole rows to themselves, all scores at once: the form of plain XLA."""

import functools

import jax
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from blt_jax.ops import head_attention, row_attention


@jax.custom_vjp
def full_attention(
  query: jax.Array, key: jax.Array, value: jax.Array, first: jax.Array
) -> jax.Array:
  """Softmax attention of each query to the keys from some first one to its own.

  Args:
    query: [B, S, N, H].
    key: [B, S, G, H]; each of the G heads serves N / G adjacent query heads.
    value: [B, S, G, H].
    first: int32 [B, S], the first key that a query sees.

  Returns:
    [B, S, N, H] in the dtype of `query`; softmax in float32.
  """
  return _forward(query, key, value, first)[0]


def _forward(query, key, value, first):
  inputs = query, key, value, first
  outputs = jax.lax.platform_dependent(
    *inputs,
    cpu=functools.partial(row_attention.attend_in_turn, window=query.shape[1]),
    default=_attend_at_once,
  )
  output, logsumexps = (checkpoint_name(x, head_attention.SAVED_AS) for x in outputs)
  return output, (*inputs, output, logsumexps)


def _attend_at_once(query, key, value, first):
  """The output, and logarithms of sums of weights, float32 [B, S, N, 1]."""
  heads = _heads_first(query, key.shape[2]), key.swapaxes(1, 2), value.swapaxes(1, 2)
  output, logsumexps = head_attention.attend(*heads, _seen(first))
  return _heads_last(output, query.shape[1]), _heads_last(logsumexps[..., None], query.shape[1])


def _backward(residuals, cotangent):
  gradients = jax.lax.platform_dependent(
    *residuals,
    cotangent,
    cpu=functools.partial(row_attention.differentiate_in_turn, window=cotangent.shape[1]),
    default=_differentiate_at_once,
  )
  return *gradients, None


def _differentiate_at_once(query, key, value, first, output, logsumexps, cotangent):
  """The gradients of query, key and value."""
  groups = key.shape[2]
  heads = _heads_first(query, groups), key.swapaxes(1, 2), value.swapaxes(1, 2)
  output, logsumexps, into = (_heads_first(x, groups) for x in (output, logsumexps, cotangent))
  of_query, of_key, of_value = head_attention.differentiate(
    *heads, _seen(first), logsumexps[..., 0], head_attention.means(output, into), into
  )
  of_query = _heads_last(of_query, query.shape[1]).astype(query.dtype)
  return of_query, *(x.swapaxes(1, 2).astype(key.dtype) for x in (of_key, of_value))


full_attention.defvjp(_forward, _backward)


def _seen(first):
  """Which keys each query sees: bool [B, S, S]."""
  position = np.arange(first.shape[1])
  causal = position[:, None] >= position
  return causal[None] & (position[None, None] >= first[..., None])


def _heads_first(x, groups):
  """[B, S, N, n] -> [B, G, R * S, n]."""
  x = head_attention.by_heads(x, groups)
  return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _heads_last(x, seq_len):
  """[B, G, R * S, n] -> [B, S, N, n]."""
  return head_attention.by_positions(x.reshape(*x.shape[:2], -1, seq_len, x.shape[-1]))
