"""Vectors of a patch attend to its bytes: forward and backward, one program per patch.

Softmax is taken online over blocks of bytes, so patches have any length. Letters: B batch,
P patches, K vectors of each, S bytes, G key/value heads, R query heads of each, H head size.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from blt_jax.ops.online_softmax import LOG2_E, MASKED
from blt_jax.ops.triton import patch_intervals
from blt_jax.ops.triton.patch_intervals import head_columns, load, over_bytes, store


def fits(query: jax.Array, key: jax.Array) -> bool:
  """Whether `attend` takes queries [B, P, K, N, H] and keys [B, S, G, H]."""
  _, _, slots, num_heads, head_dim = query.shape
  return patch_intervals.fits_heads(head_dim, slots * num_heads // key.shape[2])


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def attend(
  query: jax.Array, key: jax.Array, value: jax.Array, ids: jax.Array, interpret: bool = False
) -> jax.Array:
  """The vectors of each patch read the bytes of the patch.

  Args:
    query: [B, P, K, N, H].
    key: [B, S, G, H]; each of the G heads serves N / G adjacent query heads.
    value: [B, S, G, H].
    ids: int [B, S] patch of each byte, non-decreasing along S and at least 0; bytes of
      patches from P on are read by none.
    interpret: runs on any backend, slowly.

  Returns:
    [B, P, K, N, H] in the dtype of `query`; zeros for empty patches; softmax in float32.
  """
  return _attend_forward(query, key, value, ids, interpret)[0]


def _attend_forward(
  query: jax.Array, key: jax.Array, value: jax.Array, ids: jax.Array, interpret: bool
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
  starts = patch_intervals.interval_starts(ids, query.shape[1])
  grouped = _grouped(query, key.shape[2])
  sums = grouped.shape[:-1]
  output, logsumexps = patch_intervals.call(
    functools.partial(_patches_forward, heads=_heads(grouped)),
    _grid(grouped),
    (grouped, key, value, starts),
    ((grouped.shape, query.dtype), (sums, jnp.float32)),
    interpret,
    "patches_attend",
    _heads(grouped) * patch_intervals.padded(query.shape[-1]),
  )
  output = output.reshape(query.shape)
  return output, (query, key, value, starts, output, logsumexps)


def _attend_backward(
  interpret: bool, residuals: tuple[jax.Array, ...], gradient: jax.Array
) -> tuple[jax.Array | None, ...]:
  query, key, value, starts, output, logsumexps = residuals
  grouped, output, gradient = (_grouped(x, key.shape[2]) for x in (query, output, gradient))
  to_query, to_key, to_value = patch_intervals.call(
    functools.partial(_patches_backward, heads=_heads(grouped)),
    _grid(grouped),
    (grouped, key, value, starts, output, logsumexps, gradient),
    tuple((x.shape, x.dtype) for x in (grouped, key, value)),
    interpret,
    "patches_attend_backward",
    _heads(grouped) * patch_intervals.padded(query.shape[-1]),
  )
  return to_query.reshape(query.shape), to_key, to_value, None


attend.defvjp(_attend_forward, _attend_backward)


def _grouped(x: jax.Array, num_kv_heads: int) -> jax.Array:
  """[B, P, K, N, H] -> [B, P, K, G, R, H]."""
  return x.reshape(*x.shape[:3], num_kv_heads, -1, x.shape[-1])


def _heads(query: jax.Array) -> int:
  """How many of G heads a program takes."""
  _, _, slots, num_heads, repeats, head_dim = query.shape
  return patch_intervals.heads_at_once(num_heads, head_dim, slots * repeats)


def _grid(query: jax.Array) -> tuple[int, ...]:
  return query.shape[1], query.shape[3] // _heads(query), query.shape[0]


def _place(query_ref: Any, heads: int) -> tuple[Any, Any, Any, list[tuple[Any, ...]]]:
  """Row, patch and heads of this program, and where its vectors are in [B, P, K, G, R, H]."""
  _, _, slots, _, repeats, _ = query_ref.shape
  patch, row = pl.program_id(0), pl.program_id(2)
  group = pl.ds(pl.program_id(1) * heads, heads)
  vectors = [
    (row, patch, np.int32(k), group, np.int32(r)) for k in range(slots) for r in range(repeats)
  ]
  return row, patch, group, vectors


def _patches_forward(
  query_ref: Any,
  key_ref: Any,
  value_ref: Any,
  start_ref: Any,
  output_ref: Any,
  sums_ref: Any,
  *,
  heads: int,
) -> None:
  row, patch, group, vectors = _place(query_ref, heads)
  every, exist = head_columns(query_ref.shape[-1])
  scale = query_ref.shape[-1] ** -0.5 * LOG2_E
  # One list entry for each vector: [heads, H].
  queries = [load(query_ref.at[*at, every], columns=exist) * scale for at in vectors]
  nothing = (
    jnp.full(heads, MASKED, jnp.float32),  # largest score
    jnp.zeros(heads, jnp.float32),  # sum of weights
    jnp.zeros((heads, every.size), jnp.float32),  # sum of weighted values
  )

  def add(first: Any, inside: jax.Array, states: Any) -> Any:
    here = row, pl.ds(first, patch_intervals.BLOCK), group, every
    key, value = (load(ref.at[*here], inside, exist) for ref in (key_ref, value_ref))
    added = []
    for query, (largest, total, mixed) in zip(queries, states, strict=True):
      scores = jnp.sum(key * query[None], axis=2)  # [BLOCK, heads]
      scores = jnp.where(inside[:, None], scores, MASKED)
      highest = jnp.maximum(largest, jnp.max(scores, axis=0))
      rescale = jnp.exp2(largest - highest)
      weights = jnp.exp2(scores - highest[None])  # the first byte of a block always counts
      total = total * rescale + jnp.sum(weights, axis=0)
      mixed = mixed * rescale[:, None] + jnp.sum(weights[:, :, None] * value, axis=0)
      added.append((highest, total, mixed))
    return tuple(added)

  begin, end = start_ref[row, patch], start_ref[row, patch + 1]
  states = over_bytes(begin, end, add, (nothing,) * len(vectors))
  for at, (largest, total, mixed) in zip(vectors, states, strict=True):
    total = jnp.where(total > 0, total, 1)
    store(output_ref.at[*at, every], mixed / total[:, None], columns=exist)
    sums_ref[at] = largest + jnp.log2(total)


def _patches_backward(
  query_ref: Any,
  key_ref: Any,
  value_ref: Any,
  start_ref: Any,
  output_ref: Any,
  sums_ref: Any,
  gradient_ref: Any,
  to_query_ref: Any,
  to_key_ref: Any,
  to_value_ref: Any,
  *,
  heads: int,
) -> None:
  row, patch, group, vectors = _place(query_ref, heads)
  seq_len, head_dim = key_ref.shape[1], key_ref.shape[3]
  every, exist = head_columns(head_dim)
  scale = head_dim**-0.5
  # One list entry for each vector: [heads, H] or [heads].
  queries, gradients, outputs = (
    [load(ref.at[*at, every], columns=exist) for at in vectors]
    for ref in (query_ref, gradient_ref, output_ref)
  )
  means = [jnp.sum(g * o, axis=1) for g, o in zip(gradients, outputs, strict=True)]
  sums = [sums_ref[at] for at in vectors]

  begin, end = start_ref[row, patch], start_ref[row, patch + 1]
  # Bytes past the last patch are read by none; its program gives them zeros.
  stop = jnp.where(patch == query_ref.shape[1] - 1, seq_len, end)

  def add(first: Any, is_there: jax.Array, to_queries: Any) -> Any:
    here = row, pl.ds(first, patch_intervals.BLOCK), group, every
    inside = first + jnp.arange(patch_intervals.BLOCK) < end
    key, value = (load(ref.at[*here], inside, exist) for ref in (key_ref, value_ref))
    to_key, to_value = jnp.zeros_like(key), jnp.zeros_like(value)
    added = []
    for query, gradient, mean, log_sum, to_query in zip(
      queries, gradients, means, sums, to_queries, strict=True
    ):
      scores = jnp.sum(key * query[None], axis=2) * (scale * LOG2_E)  # [BLOCK, heads]
      weights = jnp.where(inside[:, None], jnp.exp2(scores - log_sum[None]), 0)
      to_weights = jnp.sum(value * gradient[None], axis=2)
      to_scores = (weights * (to_weights - mean[None]) * scale)[:, :, None]
      to_value += weights[:, :, None] * gradient[None]
      to_key += to_scores * query[None]
      added.append(to_query + jnp.sum(to_scores * key, axis=0))
    store(to_key_ref.at[*here], to_key, is_there, exist)
    store(to_value_ref.at[*here], to_value, is_there, exist)
    return tuple(added)

  nothing = jnp.zeros((heads, every.size), jnp.float32)
  to_queries = over_bytes(begin, stop, add, (nothing,) * len(vectors))
  for at, to_query in zip(vectors, to_queries, strict=True):
    store(to_query_ref.at[*at, every], to_query, columns=exist)
