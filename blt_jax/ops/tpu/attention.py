"""Causal self-attention on TPUs: JAX's splash attention, which skips what no query sees."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash

LANES = 128  # blocks are a multiple of it
BLOCK = 512  # positions of a block of queries or keys, in long rows
_FUSED_BLOCKS = 8  # with more, one backward kernel takes more memory than it is worth


def splash_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  window: int | None = None,
  document_ids: jax.Array | None = None,
  saved_as: str | None = None,
  interpret: bool = False,
  max_block: int = BLOCK,
) -> jax.Array:
  """Softmax attention of each position to itself and what came before it.

  The kernels know nothing of a mesh: call this on each device's shard. Rows are filled up
  to whole blocks; a position there sees at least itself, so nothing becomes NaN.

  Args:
    query: [B, S, N, H].
    key: [B, S, G, H]; each of the G heads serves N / G adjacent query heads.
    value: [B, S, G, H].
    window: how many positions are visible, the query's own included; None for all.
    document_ids: int [B, S], not negative; positions see their own document only.
    saved_as: names the output and its softmax statistics for a remat policy, which has
      to save both lest the kernel run again.
    interpret: runs on any backend, slowly.
    max_block: positions of a block, a multiple of `LANES`.

  Returns:
    [B, S, N, H] in the dtype of `query`; softmax in float32.
  """
  seq_len, head_dim = query.shape[1], query.shape[3]
  if window is not None and window >= seq_len:
    window = None
  block = min(max_block, _round_up(seq_len, LANES))
  padding = _round_up(seq_len, block) - seq_len
  heads = query.shape[2:]
  kernel = _kernel(heads, seq_len + padding, window, block, saved_as, interpret)

  def heads_first(x):
    return jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))).swapaxes(1, 2)

  segments = None
  if document_ids is not None:
    padded = jnp.pad(document_ids, ((0, 0), (0, padding)), constant_values=-1)
    segments = splash.SegmentIds(padded, padded)
  scaled = (query.astype(jnp.float32) * head_dim**-0.5).astype(query.dtype)
  output = jax.vmap(kernel)(heads_first(scaled), heads_first(key), heads_first(value), segments)
  return output.swapaxes(1, 2)[:, :seq_len]


def _kernel(
  heads: tuple[int, ...],
  seq_len: int,
  window: int | None,
  block: int,
  saved_as: str | None,
  interpret: bool,
) -> Callable[..., jax.Array]:
  """The kernels of all heads (N, H) of a row."""
  num_heads, head_dim = heads
  shape = (seq_len, seq_len)
  # Masks are objects that compute their blocks on demand, never [S, S] arrays.
  mask: splash.Mask
  if window is None:
    mask = splash.CausalMask(shape)
  else:
    mask = splash.LocalMask(shape, (window - 1, 0), offset=0)
  # One backward kernel needs no second softmax, but visits all blocks whatever the window
  # and stores the query gradients once per block of keys.
  fused = window is None and seq_len <= _FUSED_BLOCKS * block
  # Narrow heads would be filled up to the lanes: positions lie there instead.
  layout = splash.QKVLayout.SEQ_MINOR if head_dim < LANES else splash.QKVLayout.HEAD_DIM_MINOR
  sizes = splash.BlockSizes(
    block_q=block,
    block_kv=block,
    block_q_dkv=block,
    block_kv_dkv=block,
    block_q_dq=None if fused else block,
    block_kv_dq=None if fused else block,
    use_fused_bwd_kernel=fused,
    q_layout=layout,
    k_layout=layout,
    v_layout=layout,
  )
  return splash.make_splash_mha(
    splash.MultiHeadMask([mask] * num_heads),
    block_sizes=sizes,
    head_shards=1,
    q_seq_shards=1,
    residual_checkpoint_name=saved_as,
    interpret=interpret,
  )


def _round_up(x: int, multiple: int) -> int:
  return -(-x // multiple) * multiple
