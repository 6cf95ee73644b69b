"""Floating point operations: what the paper charges, and what our programs must do.

Both count a product and a sum as two operations.
"""

import dataclasses
import itertools

from blt_jax.cost import chips
from blt_jax.models.config import (
  BLTConfig,
  BPELMConfig,
  ByteLMConfig,
  CrossAttentionConfig,
  TransformerConfig,
)
from blt_jax.models.end_to_end import EndToEndConfig
from blt_jax.models.megabyte import MegaByteConfig
from blt_jax.models.mixture import MixtureConfig
from blt_jax.models.spacebyte import SpaceByteConfig

_MLP_RATIO = 4  # d_ff / h in the paper's count; it charges no SwiGLU


def blt_flops_per_byte(config: BLTConfig, bytes_per_patch: float, seq_len: int) -> float:
  """The paper's forward FLOPs per byte of a BLT (section 4.5 and appendix).

  Training costs 3 times that. Looking embeddings up is free, every MLP is charged as two
  matrices of ratio 4, and causal attention reads half of what it may, with a window too.

  Args:
    config: of the model.
    bytes_per_patch: mean.
    seq_len: bytes in a context.

  Raises:
    ValueError: patches of less than one byte, or contexts without bytes.
  """
  return _blt(config, bytes_per_patch, bytes_per_patch, seq_len)


def mixture_flops_per_byte(
  config: MixtureConfig, bytes_per_patch: float, seq_len: int
) -> float:
  """The same of a mixture: a BLT's, and those of what takes each resolution to the next.

  Args:
    config: of the model; resolutions are to each other as its `patch_sizes`.
    bytes_per_patch: mean, of the finest resolution.
    seq_len: bytes in a context.

  Raises:
    ValueError: as `blt_flops_per_byte`.
  """
  c, k = config, config.vectors_per_patch
  sizes = [bytes_per_patch * size / c.patch_sizes[0] for size in c.patch_sizes]
  total = _blt(c, sizes[0], sizes[-1], seq_len)
  encoder_cross, decoder_cross = _once(c.encoder_cross), _once(c.decoder_cross)
  for fine, coarse in itertools.pairwise(sizes):
    read = coarse / fine  # fine patches, of k vectors each
    total += _cross(c.encoder, encoder_cross, read * k, read) * k / coarse
    if c.finer_attention:
      total += _transformer(c.patch_stack, seq_len / fine) / fine
    if c.read_finer:
      total += _cross(c.decoder, decoder_cross, k, k / fine)
  return total


def _once(cross: CrossAttentionConfig | None) -> CrossAttentionConfig | None:
  """A cross-attention of one layer."""
  return cross and dataclasses.replace(cross, all_layers=False)


def _blt(c: BLTConfig, fine: float, coarse: float, seq_len: int) -> float:
  """Of a BLT whose bytes go into patches of `fine` bytes, and whose latents are of `coarse`."""
  _check_sizes(fine, seq_len)
  k = c.vectors_per_patch
  return (
    _transformer(c.latent, seq_len / coarse) / coarse
    + _transformer(c.encoder, seq_len)
    + _transformer(c.decoder, seq_len, c.vocab_size)
    + _cross(c.encoder, c.encoder_cross, fine, fine / k) * k / fine
    + _cross(c.decoder, c.decoder_cross, k, k / coarse)
    + _patching(c)
  )


def byte_lm_flops_per_byte(config: ByteLMConfig, bytes_per_patch: float, seq_len: int) -> float:
  """The same of a plain byte model, whose cost does not depend on patches.

  Args:
    config: of the model.
    bytes_per_patch: of no effect.
    seq_len: bytes in a context.

  Raises:
    ValueError: as `blt_flops_per_byte`.
  """
  _check_sizes(bytes_per_patch, seq_len)
  return _transformer(config.transformer, seq_len, config.vocab_size)


def bpe_lm_flops_per_byte(config: BPELMConfig, bytes_per_patch: float, seq_len: int) -> float:
  """The same of a model over pieces: what a piece costs, over the bytes in it.

  Args:
    config: of the model.
    bytes_per_patch: mean bytes per piece, of the text at hand.
    seq_len: bytes in a context, of which `seq_len / bytes_per_patch` pieces are made.

  Raises:
    ValueError: as `blt_flops_per_byte`.
  """
  _check_sizes(bytes_per_patch, seq_len)
  context = seq_len / bytes_per_patch
  return _transformer(config.transformer, context, config.vocab_size) / bytes_per_patch


def megabyte_flops_per_byte(
  config: MegaByteConfig, bytes_per_patch: float, seq_len: int
) -> float:
  """The same of a MegaByte: both stacks, and the matrix that hands a byte's slice over.

  Args:
    config: of the model.
    bytes_per_patch: of no effect, `config.patch_size` counts.
    seq_len: bytes in a context.

  Raises:
    ValueError: as `blt_flops_per_byte`.
  """
  _check_sizes(bytes_per_patch, seq_len)
  c, size = config, config.patch_size
  return (
    _transformer(c.global_model, seq_len / size) / size
    + _transformer(c.local_model, size, c.vocab_size)
    + 2 * c.slice_dim * c.local_model.dim
  )


def spacebyte_flops_per_byte(
  config: SpaceByteConfig, bytes_per_patch: float, seq_len: int
) -> float:
  """The same of a SpaceByte: local layers for each byte, global ones where words begin.

  Args:
    config: of the model.
    bytes_per_patch: mean bytes for each global position.
    seq_len: bytes in a context.

  Raises:
    ValueError: as `blt_flops_per_byte`.
  """
  _check_sizes(bytes_per_patch, seq_len)
  c, positions = config, seq_len / bytes_per_patch
  return (
    _transformer(c.local_model, seq_len, c.vocab_size)
    + _transformer(c.global_model, positions) / bytes_per_patch
  )


def end_to_end_flops_per_byte(
  config: EndToEndConfig, bytes_per_patch: float, seq_len: int
) -> float:
  """The same of an end-to-end BLT: a BLT's, and those of what measures its entropies.

  Args:
    config: of the model.
    bytes_per_patch: mean.
    seq_len: bytes in a context.

  Raises:
    ValueError: as `blt_flops_per_byte`.
  """
  c = config
  return (
    blt_flops_per_byte(c, bytes_per_patch, seq_len)
    + _transformer(c.predictor, seq_len, c.num_heads * c.vocab_size)
    + 2 * c.predictor.dim * c.encoder.dim
  )


def _check_sizes(bytes_per_patch: float, seq_len: int) -> None:
  if bytes_per_patch < 1 or seq_len < 1:
    raise ValueError(f"patch_size {bytes_per_patch} and seq_len {seq_len} must be at least 1.")


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


def blt_model_flops(config: BLTConfig, seq_len: int, num_patches: int) -> float:
  """What one row of a training step costs our code at least, forward and backward.

  Counts the products with every matrix at its real size and the pairs of positions that
  attention must look at, each once forward and twice backward. Padding counts: a row has
  `seq_len` byte slots and `num_patches` patch slots, whatever is in them.

  Args:
    config: of the model.
    seq_len: S.
    num_patches: P.
  """
  return 3 * _blt_forward(config, seq_len, num_patches, num_patches)


def mixture_model_flops(config: MixtureConfig, seq_len: int, num_patches: int) -> float:
  """The same of a mixture, whose finest resolution has `num_patches` slots.

  The coarsest has those of its config, the others as many as the finest.
  """
  c, k = config, config.vectors_per_patch
  num_slots = min(c.num_patches or num_patches, num_patches)
  finest = num_patches if c.resolutions > 1 else num_slots
  forward = _blt_forward(c, seq_len, finest, num_slots)
  encoder_cross, decoder_cross = _once(c.encoder_cross), _once(c.decoder_cross)
  vectors = num_patches * k
  for finer in range(c.resolutions - 1):
    own = num_slots if finer == c.resolutions - 2 else num_patches
    forward += 2 * own * c.encoder.dim * c.patch_dim
    forward += _crossing(c.encoder, encoder_cross, own * k, vectors, vectors * k)
    if c.finer_attention:
      forward += _stack(c.patch_stack, num_patches)
    if c.read_finer:
      forward += _crossing(c.decoder, decoder_cross, seq_len, vectors, seq_len * k)
  return 3 * forward


def _blt_forward(c: BLTConfig, seq_len: int, fine: int, coarse: int) -> float:
  """Forward FLOPs of a row whose bytes go into `fine` patches; latents are of `coarse`."""
  k, pairs = c.vectors_per_patch, seq_len * c.vectors_per_patch
  return (
    _stack(c.encoder, seq_len)
    + _stack(c.latent, coarse)
    + _stack(c.decoder, seq_len)
    + 2 * fine * c.encoder.dim * c.patch_dim * _pooled_projections(c)
    + coarse * _patch_projections(c)
    + _crossing(c.encoder, c.encoder_cross, fine * k, seq_len, pairs)
    + _crossing(c.decoder, c.decoder_cross, seq_len, coarse * k, pairs)
    + seq_len * (2 * c.decoder.dim * c.vocab_size + _patching(c))
  )


def byte_lm_model_flops(config: ByteLMConfig, seq_len: int, num_patches: int) -> float:
  """The same of a plain model over ids, bytes or pieces; `num_patches` is of no effect."""
  del num_patches
  stack = config.transformer
  return 3 * (_stack(stack, seq_len) + 2 * seq_len * stack.dim * config.vocab_size)


def megabyte_model_flops(config: MegaByteConfig, seq_len: int, num_patches: int) -> float:
  """The same of a MegaByte, whose patches `num_patches` does not change."""
  c, size = config, config.patch_size
  num_patches = seq_len // size
  bridge = 2 * seq_len * c.local_model.dim * (c.slice_dim + c.vocab_size)
  inside = num_patches * _stack(c.local_model, size)
  return 3 * (_stack(c.global_model, num_patches) + inside + bridge)


def spacebyte_model_flops(config: SpaceByteConfig, seq_len: int, num_patches: int) -> float:
  """The same of a SpaceByte, whose slots are those of its config, not `num_patches`."""
  c, local = config, config.local_model
  num_patches = c.global_slots(seq_len)
  output = 2 * seq_len * local.dim * c.vocab_size
  return 3 * (_stack(local, seq_len) + _stack(c.global_model, num_patches) + output)


def end_to_end_model_flops(config: EndToEndConfig, seq_len: int, num_patches: int) -> float:
  """The same of an end-to-end BLT, whose slots are those of its config, not `num_patches`."""
  c = config
  features = c.num_heads * c.vocab_size + c.encoder.dim
  predictor = _stack(c.predictor, seq_len) + 2 * seq_len * c.predictor.dim * features
  return blt_model_flops(c, seq_len, c.patch_slots(seq_len)) + 3 * predictor


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


def _patching(c: BLTConfig) -> int:
  """Forward FLOPs per byte of what reads an entropy model's states, or stands in for it."""
  head = 2 * c.encoder.dim * (c.boundary_weight > 0)
  return 2 * c.entropy_state_dim * (c.encoder.dim + c.decoder.dim) + head


def _patch_projections(c: BLTConfig) -> float:
  """Forward FLOPs per patch of the matrices around the latent transformer."""
  into = c.patch_dim * c.latent.dim * (c.patch_dim != c.latent.dim)
  out = c.latent.dim * c.decoder_slots * c.decoder.dim * c.project_latent
  return 2 * (into + out)


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
