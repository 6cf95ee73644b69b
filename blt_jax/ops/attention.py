"""Causal self-attention with optional window and documents, behind one function."""

import jax
import jax.numpy as jnp
import numpy as np

_MASKED = np.finfo(np.float32).min


def attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  window: int | None = None,
  document_ids: jax.Array | None = None,
) -> jax.Array:
  """Softmax attention of each position to itself and what came before it.

  Time and memory are O(S * window) with a window, O(S * S) without.

  Args:
    query: [B, S, N, H].
    key: [B, S, G, H]; each of the G heads serves N / G adjacent query heads.
    value: [B, S, G, H].
    window: how many positions are visible, the query's own included; None for all.
    document_ids: int [B, S]; positions see their own document only.

  Returns:
    [B, S, N, H] in the dtype of `query`; softmax in float32.
  """
  batch, seq_len, heads, head_dim = query.shape
  grouped = query.reshape(batch, seq_len, key.shape[2], -1, head_dim)
  if window is None or window >= seq_len:
    output = _full(grouped, key, value, document_ids)
  else:
    output = _banded(grouped, key, value, window, document_ids)
  return output.reshape(batch, seq_len, heads, head_dim)


def _full(query, key, value, document_ids):
  position = np.arange(query.shape[1])
  visible = position[:, None] >= position
  if document_ids is not None:
    visible = visible & (document_ids[:, :, None] == document_ids[:, None, :])
  else:
    visible = visible[None]
  return _attend(query, key, value, visible)


def _banded(query, key, value, window, document_ids):
  """Cuts the row in blocks of one window; a block sees itself and the one before."""
  seq_len = query.shape[1]
  query, key, value = (_to_blocks(x, window) for x in (query, key, value))
  key, value = (_with_previous(x) for x in (key, value))
  distance = np.arange(window)[:, None] + window - np.arange(2 * window)
  first = np.arange(query.shape[1])[:, None, None] == 0
  outside = first & (np.arange(2 * window) < window)
  visible = (distance >= 0) & (distance < window) & ~outside
  if document_ids is not None:
    documents = _to_blocks(document_ids, window)
    visible = visible & (documents[..., None] == _with_previous(documents)[:, :, None])
  else:
    visible = visible[None]
  output = _attend(query, key, value, visible)
  return output.reshape(output.shape[0], -1, *output.shape[3:])[:, :seq_len]


def _to_blocks(x, size):
  """[B, S, ...] -> [B, S / size, size, ...], zeros on the right where S falls short."""
  padding = [(0, 0)] * x.ndim
  padding[1] = (0, -x.shape[1] % size)
  return jnp.pad(x, padding).reshape(x.shape[0], -1, size, *x.shape[2:])


def _with_previous(blocks):
  """[B, C, size, ...] -> [B, C, 2 * size, ...], the block before in front of each."""
  previous = jnp.pad(blocks, [(0, 0), (1, 0)] + [(0, 0)] * (blocks.ndim - 2))[:, :-1]
  return jnp.concatenate([previous, blocks], axis=2)


def _attend(query, key, value, visible):
  """Softmax attention over the leading axes.

  Shapes: query [..., Q, G, R, H], key and value [..., K, G, H], visible bool [..., Q, K].
  """
  scores = jnp.einsum("...qgrh,...kgh->...grqk", query, key, preferred_element_type=jnp.float32)
  scores = scores * query.shape[-1] ** -0.5
  scores = jnp.where(visible[..., None, None, :, :], scores, _MASKED)
  weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
  return jnp.einsum("...grqk,...kgh->...qgrh", weights, value)
