"""Floating point operations: what the paper charges, and what our programs must do.

Both count a product and a sum as two operations.
"""

from blt_jax import chips
from blt_jax.models.config import (
  BLTConfig,
  ByteLMConfig,
  CrossAttentionConfig,
  TransformerConfig,
)

_MLP_RATIO = 4  # d_ff / h in the paper's count; it charges no SwiGLU


def flops_per_byte(config: BLTConfig | ByteLMConfig, patch_size: float, seq_len: int) -> float:
  """The paper's forward FLOPs per byte (section 4.5 and appendix); training costs 3 times that.

  Looking embeddings up is free, every MLP is charged as two matrices of ratio 4, and
  causal attention reads half of what it may, with a window too.

  Args:
    config: of the model. For a BPE model, a "byte" is a token.
    patch_size: mean bytes per patch; of no effect on a `ByteLMConfig`.
    seq_len: bytes in a context.

  Raises:
    ValueError: patches of less than one byte, or contexts without bytes.
  """
  if patch_size < 1 or seq_len < 1:
    raise ValueError(f"patch_size {patch_size} and seq_len {seq_len} must be at least 1.")
  if isinstance(config, ByteLMConfig):
    return _transformer(config.transformer, seq_len, config.vocab_size)
  c, k = config, config.vectors_per_patch
  return (
    _transformer(c.latent, seq_len / patch_size) / patch_size
    + _transformer(c.encoder, seq_len)
    + _transformer(c.decoder, seq_len, c.vocab_size)
    + _cross(c.encoder, c.encoder_cross, patch_size, patch_size / k) * k / patch_size
    + _cross(c.decoder, c.decoder_cross, k, k / patch_size)
  )


def _transformer(stack: TransformerConfig, context: float, vocab_size: int = 0) -> float:
  """Transf(h, l, m, V) per position."""
  visible = min(stack.window or context, context)
  width = stack.num_heads * stack.head_dim
  mlp = 2 * stack.num_layers * 2 * stack.dim * _MLP_RATIO * stack.dim
  kv = stack.num_kv_heads / stack.num_heads
  projections = (2 * kv + 2) * 2 * stack.num_layers * stack.dim * width
  output = 2 * stack.dim * vocab_size
  return mlp + projections + _attention(stack.num_layers, width, visible) + output


def _cross(
  stack: TransformerConfig, cross: CrossAttentionConfig | None, visible: float, ratio: float
) -> float:
  """Cross(l, h_k, n_h, p, r) per query; `ratio` keys and values are made per query."""
  if cross is None:
    return 0.0
  layers = _num_layers(stack, cross)
  kv = cross.num_kv_heads / cross.num_heads
  projections = (2 * ratio * kv + 2) * 2 * layers * stack.dim**2
  return projections + _attention(layers, stack.dim, visible * (cross.window or 1))


def _attention(layers: int, width: int, visible: float) -> float:
  """Attention(l, h_k, n_h, m) per query."""
  return 4 * layers * width * (visible + 1) / 2


def model_flops(config: BLTConfig | ByteLMConfig, seq_len: int, num_patches: int) -> float:
  """What one row of a training step costs our code at least, forward and backward.

  Counts the products with every matrix at its real size and the pairs of positions that
  attention must look at, each once forward and twice backward. Padding counts: a row has
  `seq_len` byte slots and `num_patches` patch slots, whatever is in them.

  Args:
    config: of the model.
    seq_len: S.
    num_patches: P; of no effect on a `ByteLMConfig`.
  """
  if isinstance(config, ByteLMConfig):
    stack = config.transformer
    return 3 * (_stack(stack, seq_len) + 2 * seq_len * stack.dim * config.vocab_size)
  c = config
  vectors = num_patches * c.vectors_per_patch
  pairs = seq_len * c.vectors_per_patch
  forward = (
    _stack(c.encoder, seq_len)
    + _stack(c.latent, num_patches)
    + _stack(c.decoder, seq_len)
    + num_patches * _patch_projections(c)
    + _crossing(c.encoder, c.encoder_cross, vectors, seq_len, pairs)
    + _crossing(c.decoder, c.decoder_cross, seq_len, vectors, pairs)
    + 2 * seq_len * c.decoder.dim * c.vocab_size
  )
  return 3 * forward


def _stack(stack: TransformerConfig, length: int) -> float:
  """Forward FLOPs of a stack over a row of `length` positions."""
  width = stack.num_heads * stack.head_dim
  projections = 4 * stack.dim * (width + stack.num_kv_heads * stack.head_dim)
  matrices = length * (projections + 6 * stack.dim * stack.mlp_dim)
  return stack.num_layers * (matrices + 4 * width * visible_pairs(length, stack.window))


def visible_pairs(length: int, window: int | None) -> int:
  """Pairs (query, key) of causal attention over a row, `window` positions visible at most."""
  window = min(window or length, length)
  return window * (window + 1) // 2 + (length - window) * window


def _patch_projections(c: BLTConfig) -> float:
  """Forward FLOPs per patch of the matrices between local models and latent transformer."""
  pooled = c.encoder.dim * c.patch_dim * _pooled_projections(c)
  into = c.patch_dim * c.latent.dim * (c.patch_dim != c.latent.dim)
  out = c.latent.dim * c.decoder_slots * c.decoder.dim * c.project_latent
  return 2 * (pooled + into + out)


def _pooled_projections(c: BLTConfig) -> int:
  if c.encoder_cross is None:
    return 0
  return _num_layers(c.encoder, c.encoder_cross) if c.repool else 1


def _crossing(
  stack: TransformerConfig,
  cross: CrossAttentionConfig | None,
  queries: int,
  keys: int,
  pairs: int,
) -> float:
  """Forward FLOPs of cross-attention over a row; `pairs` of a byte and a patch's vector."""
  if cross is None:
    return 0.0
  width = stack.dim // cross.num_heads * cross.num_heads
  kv = cross.num_kv_heads / cross.num_heads
  projections = 4 * stack.dim * width * (queries + kv * keys)
  return _num_layers(stack, cross) * (projections + 4 * width * pairs * (cross.window or 1))


def _num_layers(stack: TransformerConfig, cross: CrossAttentionConfig) -> int:
  return stack.num_layers if cross.all_layers else 1


def peak_flops(device_kind: str) -> float | None:
  """Peak bfloat16 FLOPs per second of a jax device; None where it is not known.

  Args:
    device_kind: `jax.Device.device_kind`.
  """
  chip = chips.find_chip(device_kind)
  return chip.flops if chip else None
