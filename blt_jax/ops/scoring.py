"""The door of the whole-layer kernels that score with a byte model on Hopper GPUs."""

import jax

from blt_jax.ops import device as devices
from blt_jax.ops.hopper import attention, product
from blt_jax.ops.hopper.attention import interval_attention as interval_attention
from blt_jax.ops.hopper.layer import added as added
from blt_jax.ops.hopper.layer import angle_parts as angle_parts
from blt_jax.ops.hopper.layer import gated as gated
from blt_jax.ops.hopper.layer import rotated as rotated

SQUARES = 2 * product.COLUMNS  # features whose squares `added` sums in one part


def runs_on(device: jax.Device) -> bool:
  """Whether the kernels are made for a device."""
  return devices.is_hopper(device)


def fits(
  shape: tuple[int, int],
  width: int,
  mlp_width: int,
  heads: tuple[int, int, int],
  window: int,
) -> bool:
  """Whether the kernels take rows of these sizes.

  Args:
    shape: B and S of the rows.
    width: D.
    mlp_width: F.
    heads: N, G and H.
    window: W of attention, which keeps as many positions of the rows before.
  """
  batch_size, seq_len = shape
  num_heads, num_kv_heads, head_size = heads
  multiples = (
    (batch_size * seq_len, product.ROWS),
    (width, SQUARES),
    (mlp_width, product.COLUMNS),
    (num_heads * head_size // 2, product.COLUMNS),
    (num_kv_heads * head_size // 2, product.COLUMNS),
    (seq_len, attention.BLOCK),
    (window, attention.BLOCK),
  )
  divides = all(n % size == 0 for n, size in multiples)
  return head_size == attention.HEAD_DIM and divides and seq_len >= window
