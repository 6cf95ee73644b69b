"""Windowed attention of rows that go on, as one kernel for NVIDIA GPUs; forward only.

The keys that a query sees are one interval, from the start of its document or window to
itself, so a block of queries reads from the first of its intervals to its last query and
nothing else.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from blt_jax.ops import online_softmax
from blt_jax.ops.online_softmax import LOG2_E, MASKED

BLOCK = 64  # queries of a program, and keys of one step of its loops


def interval_attention(
  query: jax.Array,
  row: tuple[jax.Array, jax.Array],
  past: tuple[jax.Array, jax.Array],
  first: jax.Array,
  interpret: bool = False,
) -> jax.Array:
  """Softmax attention to an interval of keys that ends at the query's own.

  Args:
    query: [B, S, N, H]; S is a multiple of `BLOCK`, H a power of two.
    row: keys and values [B, S, G, H] of the queries' positions.
    past: keys and values [B, W, G, H] before them; W is a multiple of `BLOCK`.
    first: int32 [B, S], the first position that each query sees; -W is the first of all.
    interpret: runs on any backend, slowly.

  Returns:
    [B, S, N, H] in the dtype of `query`; softmax in float32.
  """
  batch, seq_len, heads, head_dim = query.shape
  shared = heads // row[0].shape[2]

  def whole(states):
    shape = (None, states.shape[1], None, head_dim)
    return pl.BlockSpec(shape, lambda i, h, b: (b, 0, h // shared, 0))

  block = pl.BlockSpec((None, BLOCK, None, head_dim), lambda i, h, b: (b, i, h, 0))
  keys_and_values = (*row, *past)
  return pl.pallas_call(
    functools.partial(_kernel, scale=head_dim**-0.5 * LOG2_E),
    grid=(seq_len // BLOCK, heads, batch),
    in_specs=[
      pl.BlockSpec((None, BLOCK), lambda i, h, b: (b, i)),
      block,
      *map(whole, keys_and_values),
    ],
    out_specs=block,
    out_shape=jax.ShapeDtypeStruct(query.shape, query.dtype),
    compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=3),
    interpret=interpret,
    name="interval_attention",
  )(first, query, *keys_and_values)


def _kernel(first_ref, query_ref, *refs, scale):
  (*row, past_key, past_value, output_ref) = refs
  query = (query_ref[...].astype(jnp.float32) * scale).astype(query_ref.dtype)
  first = first_ref[...]
  lowest, diagonal = jnp.min(first), pl.program_id(0)
  own = diagonal * BLOCK + jnp.arange(BLOCK)

  def add(refs, offset, j, state):
    key, value = (ref[pl.ds(j * BLOCK, BLOCK), :] for ref in refs)
    scores = jnp.dot(query, key.T, preferred_element_type=jnp.float32)
    position = (j * BLOCK + jnp.arange(BLOCK) - offset)[None]
    visible = (position >= first[:, None]) & (position <= own[:, None])

    def mix(weights):
      return jnp.dot(weights.astype(value.dtype), value, preferred_element_type=jnp.float32)

    return online_softmax.add(state, jnp.where(visible, scores, MASKED), mix)

  state = online_softmax.nothing((BLOCK,), query.shape[1])
  window = past_key.shape[0]
  begin = (jnp.minimum(lowest, 0) + window) // BLOCK
  add_past = functools.partial(add, (past_key, past_value), window)
  state = jax.lax.fori_loop(begin, window // BLOCK, add_past, state)
  begin, add_row = jnp.maximum(lowest, 0) // BLOCK, functools.partial(add, row, 0)
  _, total, mixed = jax.lax.fori_loop(begin, diagonal + 1, add_row, state)
  output_ref[...] = (mixed / total[:, None]).astype(output_ref.dtype)
