"""Attention with explicit masks, as plain as possible."""

import jax
import jax.numpy as jnp


def attend(query, key, value, visible):
  """Softmax attention; rows that see nothing yield zeros.

  Args:
    query: [B, Q, N, H].
    key: [B, T, G, H]; each of the G heads serves N / G adjacent query heads.
    value: [B, T, G, H].
    visible: bool [B, Q, T].

  Returns:
    [B, Q, N, H].
  """
  repeats = query.shape[2] // key.shape[2]
  key, value = (jnp.repeat(x, repeats, axis=2) for x in (key, value))
  scores = jnp.einsum("bqnh,btnh->bnqt", query, key) * query.shape[-1] ** -0.5
  visible = visible[:, None]
  weights = jax.nn.softmax(jnp.where(visible, scores, -1e30), axis=-1)
  return jnp.einsum("bnqt,btnh->bqnh", jnp.where(visible, weights, 0), value)


def causal(seq_len, window=None, document_ids=None):
  """What positions see: bool [1 or B, S, S]."""
  distance = jnp.arange(seq_len)[None, :, None] - jnp.arange(seq_len)[None, None]
  visible = distance >= 0
  if window is not None:
    visible = visible & (distance < window)
  if document_ids is not None:
    visible = visible & (document_ids[:, :, None] == document_ids[:, None, :])
  return visible


def patch_window(query_ids, key_ids, window=None):
  """Which ids see which: bool [B, Q, T] from [B, Q] and [B, T]."""
  distance = query_ids[:, :, None] - key_ids[:, None, :]
  return (distance >= 0) & (distance < (window or 1))
