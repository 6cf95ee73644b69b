"""Bytes attend to the vectors of a patch: forward and backward, one program per patch.

A program holds the vectors of its patch and goes through the bytes that read them; their
softmax has K terms, so that the backward pass takes it again instead of keeping anything.
Letters: B batch, P patches, K vectors of each, S bytes, G key/value heads, R query heads
of each, H head size.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from blt_jax.ops.online_softmax import LOG2_E
from blt_jax.ops.triton import patch_intervals
from blt_jax.ops.triton.patch_intervals import head_columns, load, over_bytes, store


def fits(query: jax.Array, key: jax.Array) -> bool:
  """Whether `attend` takes queries [B, S, N, H] and keys [B, P, K, G, H]."""
  return patch_intervals.fits_heads(query.shape[-1], key.shape[2])


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def attend(
  query: jax.Array, key: jax.Array, value: jax.Array, ids: jax.Array, interpret: bool = False
) -> jax.Array:
  """Each byte reads the K vectors of one patch.

  Args:
    query: [B, S, N, H].
    key: [B, P, K, G, H]; each of the G heads serves N / G adjacent query heads.
    value: [B, P, K, G, H].
    ids: int [B, S] patch that each byte reads, non-decreasing along S; ids outside of 0 to
      P - 1 stand for the nearest patch.
    interpret: runs on any backend, slowly.

  Returns:
    [B, S, N, H] in the dtype of `query`; softmax in float32.
  """
  return _attend_forward(query, key, value, ids, interpret)[0]


def _attend_forward(
  query: jax.Array, key: jax.Array, value: jax.Array, ids: jax.Array, interpret: bool
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
  num_patches = key.shape[1]
  starts = patch_intervals.interval_starts(ids.clip(0, num_patches - 1), num_patches)
  grouped = _grouped(query, key.shape[3])
  (output,) = patch_intervals.call(
    functools.partial(_bytes_forward, heads=_heads(key)),
    _grid(key),
    (grouped, key, value, starts),
    ((grouped.shape, query.dtype),),
    interpret,
    "bytes_attend",
    _heads(key) * patch_intervals.padded(key.shape[-1]),
  )
  return output.reshape(query.shape), (query, key, value, starts)


def _attend_backward(
  interpret: bool, residuals: tuple[jax.Array, ...], gradient: jax.Array
) -> tuple[jax.Array | None, ...]:
  query, key, value, starts = residuals
  grouped, gradient = (_grouped(x, key.shape[3]) for x in (query, gradient))
  to_query, to_key, to_value = patch_intervals.call(
    functools.partial(_bytes_backward, heads=_heads(key)),
    _grid(key),
    (grouped, key, value, starts, gradient),
    tuple((x.shape, x.dtype) for x in (grouped, key, value)),
    interpret,
    "bytes_attend_backward",
    _heads(key) * patch_intervals.padded(key.shape[-1]),
  )
  return to_query.reshape(query.shape), to_key, to_value, None


attend.defvjp(_attend_forward, _attend_backward)


def _grouped(x: jax.Array, num_kv_heads: int) -> jax.Array:
  """[B, S, N, H] -> [B, S, G, R, H]."""
  return x.reshape(*x.shape[:2], num_kv_heads, -1, x.shape[-1])


def _heads(key: jax.Array) -> int:
  """How many of G heads a program takes."""
  _, _, slots, num_heads, head_dim = key.shape
  return patch_intervals.heads_at_once(num_heads, head_dim, slots)


def _grid(key: jax.Array) -> tuple[int, ...]:
  return key.shape[1], key.shape[3] // _heads(key), key.shape[0]


def _softmax(query: jax.Array, keys: Sequence[jax.Array], head_dim: int) -> list[jax.Array]:
  """Weights [BLOCK, heads] of each of the K vectors; queries [BLOCK, heads, H]."""
  scale = head_dim**-0.5 * LOG2_E
  scores = [jnp.sum(query * key[None], axis=2) * scale for key in keys]
  highest = functools.reduce(jnp.maximum, scores)
  weights = [jnp.exp2(score - highest) for score in scores]
  total = functools.reduce(jnp.add, weights)
  return [weight / total for weight in weights]


def _add_up(factors: Sequence[jax.Array], vectors: Sequence[jax.Array]) -> jax.Array:
  """The sum of vectors [heads, H], each times [BLOCK, heads]: [BLOCK, heads, H]."""
  terms = [f[:, :, None] * v[None] for f, v in zip(factors, vectors, strict=True)]
  return functools.reduce(jnp.add, terms)


def _bytes_forward(
  query_ref: Any, key_ref: Any, value_ref: Any, start_ref: Any, output_ref: Any, *, heads: int
) -> None:
  patch, row = pl.program_id(0), pl.program_id(2)
  group = pl.ds(pl.program_id(1) * heads, heads)
  slots, head_dim = key_ref.shape[2], key_ref.shape[4]
  every, exist = head_columns(head_dim)
  keys, values = (
    [load(ref.at[row, patch, np.int32(k), group, every], columns=exist) for k in range(slots)]
    for ref in (key_ref, value_ref)
  )

  def mix(first: Any, inside: jax.Array, carry: Any) -> Any:
    for r in range(query_ref.shape[3]):
      here = row, pl.ds(first, patch_intervals.BLOCK), group, np.int32(r), every
      weights = _softmax(load(query_ref.at[*here], inside, exist), keys, head_dim)
      store(output_ref.at[*here], _add_up(weights, values), inside, exist)
    return carry

  begin, end = start_ref[row, patch], start_ref[row, patch + 1]
  over_bytes(begin, end, mix, begin)  # a carry of Python's own does not lower


def _bytes_backward(
  query_ref: Any,
  key_ref: Any,
  value_ref: Any,
  start_ref: Any,
  gradient_ref: Any,
  to_query_ref: Any,
  to_key_ref: Any,
  to_value_ref: Any,
  *,
  heads: int,
) -> None:
  patch, row = pl.program_id(0), pl.program_id(2)
  group = pl.ds(pl.program_id(1) * heads, heads)
  slots, head_dim = key_ref.shape[2], key_ref.shape[4]
  every, exist = head_columns(head_dim)
  keys, values = (
    [load(ref.at[row, patch, np.int32(k), group, every], columns=exist) for k in range(slots)]
    for ref in (key_ref, value_ref)
  )

  def add(first: Any, inside: jax.Array, carry: Any) -> Any:
    to_keys, to_values = carry  # K each of [heads, H]
    for r in range(query_ref.shape[3]):
      here = row, pl.ds(first, patch_intervals.BLOCK), group, np.int32(r), every
      query, gradient = (
        load(ref.at[*here], inside, exist) for ref in (query_ref, gradient_ref)
      )
      weights = _softmax(query, keys, head_dim)
      to_weights = [jnp.sum(gradient * value[None], axis=2) for value in values]
      mean = functools.reduce(
        jnp.add, [w * to_w for w, to_w in zip(weights, to_weights, strict=True)]
      )
      to_scores = [
        w * (to_w - mean) * head_dim**-0.5 for w, to_w in zip(weights, to_weights, strict=True)
      ]
      store(to_query_ref.at[*here], _add_up(to_scores, keys), inside, exist)
      # Bytes outside have zeros for query and gradient and add nothing.
      to_keys = tuple(
        total + jnp.sum(s[:, :, None] * query, axis=0)
        for total, s in zip(to_keys, to_scores, strict=True)
      )
      to_values = tuple(
        total + jnp.sum(w[:, :, None] * gradient, axis=0)
        for total, w in zip(to_values, weights, strict=True)
      )
    return to_keys, to_values

  nothing = (jnp.zeros((heads, every.size), jnp.float32),) * slots
  begin, end = start_ref[row, patch], start_ref[row, patch + 1]
  to_keys, to_values = over_bytes(begin, end, add, (nothing, nothing))
  for k in range(slots):
    at = row, patch, np.int32(k), group, every
    store(to_key_ref.at[*at], to_keys[k], columns=exist)
    store(to_value_ref.at[*at], to_values[k], columns=exist)
