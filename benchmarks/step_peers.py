"""Other implementations of BLT in PyTorch, of the same sizes, for `train_step.py --peers`."""

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

from blt_jax.convert import hf
from blt_jax.models.config import BLTConfig

Calls = dict[str, Callable[[], None]]


def peers(config: BLTConfig, batch: dict[str, np.ndarray], dtype: str) -> dict[str, Calls]:
  """The peers that are installed, by name.

  Hugging Face's needs transformers; Meta's, its package `bytelatent` on the path. Both look
  at whole rows: Hugging Face's has no document masks, Meta's would need xformers for them.

  Args:
    config: of the model.
    batch: `tokens`, `targets` [B, S] and `patch_lengths` [B, P].
    dtype: of parameters and activations.

  Returns:
    For each peer "forward" and "forward_backward", which return when all is done.
  """
  import torch
  import transformers

  device = "cuda" if torch.cuda.is_available() else "cpu"
  torch.manual_seed(0)
  found = {f"Hugging Face, transformers {transformers.__version__}": _hugging_face(config)}
  if importlib.util.find_spec("bytelatent"):
    found["Meta, bytelatent"] = _meta(config, batch["tokens"].shape[1], device)
  tensors = {
    name: torch.tensor(batch[name], dtype=torch.long, device=device)
    for name in ("tokens", "targets", "patch_lengths")
  }
  calls = {}
  for name, (model, logits) in found.items():
    model = model.to(device=device, dtype=getattr(torch, dtype)).train()
    calls[name] = _calls(model, logits, tensors)
    if device == "cuda":
      calls[f"{name}, compiled"] = _calls(model, torch.compile(logits), tensors)
  return calls


def _calls(model: Any, logits: Callable[..., Any], tensors: dict[str, Any]) -> Calls:
  import torch

  def loss():
    predicted = logits(tensors["tokens"], tensors["patch_lengths"].clone())
    flat = predicted.flatten(0, 1).float()
    return torch.nn.functional.cross_entropy(flat, tensors["targets"].flatten())

  def wait():
    if torch.cuda.is_available():
      torch.cuda.synchronize()

  def forward():
    with torch.no_grad():
      loss()
    wait()

  def forward_backward():
    loss().backward()
    model.zero_grad(set_to_none=True)
    wait()

  return {"forward": forward, "forward_backward": forward_backward}


def _hugging_face(config: BLTConfig) -> tuple[Any, Callable[..., Any]]:
  """The model, and its logits of tokens and patch lengths."""
  import transformers

  model = transformers.BltForCausalLM(
    transformers.BltConfig(**hf.to_hf(config, None, None), patcher_config=_SMALL_PATCHER)
  )
  return (
    model,
    lambda tokens, lengths: (
      model(input_ids=tokens, patch_lengths=lengths, use_cache=False).logits
    ),
  )


_SMALL_PATCHER = dict(  # never run: patch lengths are given
  hidden_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
  intermediate_size=256,
)  # fmt: skip


def _meta(config: BLTConfig, seq_len: int, device: str) -> tuple[Any, Callable[..., Any]]:
  """The model, and its logits of tokens and patch lengths."""
  from bytelatent.model.blt import ByteLatentTransformer, ByteLatentTransformerArgs

  c = config
  arguments = ByteLatentTransformerArgs(
      vocab_size=c.vocab_size, dim=c.latent.dim, n_heads=c.latent.num_heads,
      dim_token=c.encoder.dim, dim_global=c.latent.dim,
      dim_local_encoder=c.encoder.dim, dim_local_decoder=c.decoder.dim,
      n_layers_global=c.latent.num_layers, n_layers_local_encoder=c.encoder.num_layers,
      n_layers_local_decoder=c.decoder.num_layers, n_heads_global=c.latent.num_heads,
      n_heads_local_encoder=c.encoder.num_heads, n_heads_local_decoder=c.decoder.num_heads,
      patch_size=4, patching_mode="entropy", use_local_encoder_transformer=True,
      cross_attn_encoder=True, cross_attn_decoder=True, cross_attn_init_by_pooling=True,
      cross_attn_k=c.vectors_per_patch, cross_attn_nheads=c.encoder_cross.num_heads,
      cross_attn_all_layers_encoder=c.encoder_cross.all_layers,
      cross_attn_all_layers_decoder=c.decoder_cross.all_layers,
      cross_attn_use_flex_attention=device == "cuda", downsampling_by_pooling=c.pooling,
      encoder_hash_byte_group_size=list(c.hash_sizes),
      encoder_hash_byte_group_vocab=c.hash_vocab_size,
      encoder_hash_byte_group_nb_functions=c.hash_functions,
      local_attention_window_len=c.encoder.window, rope_theta=c.encoder.rope_theta,
      max_encoder_seq_length=seq_len, max_seqlen=seq_len, attn_impl="sdpa",
      attn_bias_type="causal",
  )  # fmt: skip
  model = ByteLatentTransformer(arguments)
  model.init_weights()
  return model, model
