"""Causal self-attention with optional window and documents, behind one function."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from blt_jax.ops import device, head_attention
from blt_jax.ops.full_attention import full_attention
from blt_jax.ops.masked_attention import masked_attention
from blt_jax.ops.tpu import attention as tpu_attention
from blt_jax.ops.triton import attention as gpu_attention
from blt_jax.ops.triton import interval_attention
from blt_jax.ops.window_attention import window_attention

SAVED_AS = head_attention.SAVED_AS


class Past(NamedTuple):
  """The W positions before a row that goes on, W the window.

  Attributes:
    key: [B, W, G, H].
    value: [B, W, G, H].
    document_ids: int32 [B, W]; `NOTHING` where no position was yet.
  """

  key: jax.Array
  value: jax.Array
  document_ids: jax.Array


_LOOPED = 128  # windows from here on: the scores of a few blocks of queries fill a CPU's cache
NOTHING = -1  # the document of a position that does not exist


def attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  window: int | None = None,
  document_ids: jax.Array | None = None,
  past: Past | None = None,
) -> jax.Array:
  """Softmax attention of each position to itself and what came before it.

  Time and memory are O(S * window) with a window, O(S * S) without; with kernels, the
  memory is O(S). Under a mesh it has to be called on each device's shard.

  Args:
    query: [B, S, N, H].
    key: [B, S, G, H]; each of the G heads serves N / G adjacent query heads.
    value: [B, S, G, H].
    window: how many positions are visible, the query's own included; None for all.
    document_ids: int [B, S]; positions see their own document only. A document's
      positions are adjacent.
    past: what precedes the row; needs a window and `document_ids`.

  Returns:
    [B, S, N, H] in the dtype of `query`; softmax in float32.

  Raises:
    ValueError: a past without a window or `document_ids`.
  """
  batch, seq_len = query.shape[:2]
  kernels = device.kernels()
  if past is None and kernels == "tpu":
    return tpu_attention.splash_attention(
      query, key, value, window=window, document_ids=document_ids, saved_as=SAVED_AS
    )
  if past is None and kernels == "triton" and interval_attention.fits(query):
    first, last = intervals(document_ids, window, (batch, seq_len))
    return interval_attention.interval_attention(
      query, key, value, first, last, interval_attention.tiles_for(query), SAVED_AS
    )
  if past is not None:
    if window is None or document_ids is None:
      raise ValueError("A row after a past needs window and document_ids; pass both.")
    return _resumed(query, key, value, window, document_ids, past)
  if window is None or window >= seq_len:
    return _full(query, key, value, document_ids)
  return _windowed(query, key, value, window, document_ids)


def first_visible(document_ids: jax.Array, window: int) -> jax.Array:
  """The first position that each one sees, in its document and window: int32 [B, S]."""
  position = jnp.arange(document_ids.shape[1])[None]
  changes = document_ids[:, 1:] != document_ids[:, :-1]
  starts = jnp.pad(changes, ((0, 0), (1, 0))) * position
  return jnp.maximum(jax.lax.cummax(starts, axis=1), position - window + 1)


def intervals(
  document_ids: jax.Array | None, window: int | None, shape: tuple[int, int]
) -> tuple[jax.Array, jax.Array]:
  """What each position sees, and who sees it.

  Args:
    document_ids: int [B, S], or None where documents do not matter.
    window: positions visible, or None for all.
    shape: (B, S).

  Returns:
    int32 [B, S] twice: the first position that each one sees, and one past the last
    position that sees it.
  """
  seq_len = shape[1]
  if document_ids is None:
    document_ids = jnp.zeros(shape, jnp.int32)
  window = min(window or seq_len, seq_len)
  first = jnp.maximum(first_visible(document_ids, window), 0)
  position = jnp.arange(seq_len)[None]
  changes = document_ids[:, 1:] != document_ids[:, :-1]
  is_last = jnp.pad(changes, ((0, 0), (0, 1)), constant_values=True)
  ends = jax.lax.cummin(jnp.where(is_last, position + 1, seq_len), axis=1, reverse=True)
  last = jnp.minimum(ends, position + window)
  # Named lest each layer count them again in the backward pass.
  return tuple(checkpoint_name(x.astype(jnp.int32), SAVED_AS) for x in (first, last))


def keep(past: Past, row: Past) -> Past:
  """The last W positions of `past` [B, W, ...] and the `row` [B, S, ...] after it."""
  window = past.key.shape[1]
  both = (jnp.concatenate(parts, axis=1)[:, -window:] for parts in zip(past, row, strict=True))
  return Past(*both)


def _resumed(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  window: int,
  document_ids: jax.Array,
  past: Past,
) -> jax.Array:
  """A row that goes on; bfloat16 rows on a GPU have a kernel of their own."""
  sizes = (query.shape[1], window)
  if query.dtype != jnp.bfloat16 or any(n % gpu_attention.BLOCK for n in sizes):
    return _windowed(query, key, value, window, document_ids, past)

  def on_gpu(query, key, value, own, past_key, past_value, before):
    documents = jnp.concatenate([before, own], axis=1)
    first = first_visible(documents, window)[:, window:] - window
    return gpu_attention.interval_attention(query, (key, value), (past_key, past_value), first)

  def elsewhere(query, key, value, own, *past):
    return _windowed(query, key, value, window, own, Past(*past))

  return jax.lax.platform_dependent(
    query, key, value, document_ids, *past, cuda=on_gpu, default=elsewhere
  )


def _windowed(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  window: int,
  document_ids: jax.Array | None,
  past: Past | None = None,
) -> jax.Array:
  """Heads [B, S, N, H] of queries of that shape, in plain XLA."""
  if window >= _LOOPED:
    if document_ids is None:
      document_ids = jnp.zeros(query.shape[:2], jnp.int32)
    if past is not None:
      key, value = (jnp.concatenate(x, axis=1) for x in ((past.key, key), (past.value, value)))
      document_ids = jnp.concatenate([past.document_ids, document_ids], axis=1)
    first = jnp.maximum(first_visible(document_ids, window), 0)[:, -query.shape[1] :]
    return window_attention(query, key, value, first, window)
  grouped = query.reshape(*query.shape[:2], key.shape[2], -1, query.shape[-1])
  # Scores, kept for the backward pass, would take far more memory than all else.
  banded = jax.checkpoint(_banded, static_argnums=3)
  output = banded(grouped, key, value, window, document_ids, past).reshape(query.shape)
  return checkpoint_name(output, SAVED_AS)


def _full(
  query: jax.Array, key: jax.Array, value: jax.Array, document_ids: jax.Array | None
) -> jax.Array:
  """Queries [B, S, N, H] see keys and values [B, S, G, H]: [B, S, N, H]."""
  if document_ids is None:
    document_ids = jnp.zeros(query.shape[:2], jnp.int32)
  return full_attention(query, key, value, first_visible(document_ids, query.shape[1]))


def _banded(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  window: int,
  document_ids: jax.Array | None,
  past: Past | None = None,
) -> jax.Array:
  """Queries [B, S, G, R, H], in blocks of one window that see themselves and the one before."""
  seq_len = query.shape[1]
  query, key, value = (_to_blocks(x, window) for x in (query, key, value))
  key = _with_previous(key, past and past.key)
  value = _with_previous(value, past and past.value)
  distance = np.arange(window)[:, None] + window - np.arange(2 * window)
  first = np.arange(query.shape[1])[:, None, None] == 0
  outside = first & (np.arange(2 * window) < window) & (past is None)
  visible = ((distance >= 0) & (distance < window) & ~outside)[None]
  if document_ids is not None:
    own = _to_blocks(document_ids, window)
    seen = _with_previous(own, past and past.document_ids)
    visible = visible & (own[..., None] == seen[:, :, None])
  output = masked_attention(query, key, value, visible)
  return output.reshape(output.shape[0], -1, *output.shape[3:])[:, :seq_len]


def _to_blocks(x: jax.Array, size: int) -> jax.Array:
  """[B, S, ...] -> [B, S / size, size, ...], zeros on the right where S falls short."""
  padding = [(0, 0)] * x.ndim
  padding[1] = (0, -x.shape[1] % size)
  return jnp.pad(x, padding).reshape(x.shape[0], -1, size, *x.shape[2:])


def _with_previous(blocks: jax.Array, past: jax.Array | None = None) -> jax.Array:
  """[B, C, size, ...] -> [B, C, 2 * size, ...], the block before in front of each."""
  first = jnp.zeros_like(blocks[:, 0]) if past is None else past
  previous = jnp.concatenate([first[:, None], blocks[:, :-1]], axis=1)
  return jnp.concatenate([previous, blocks], axis=2)
