"""Decode weights from a model's parameters: layers unstacked, matrices joined."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from blt_jax.decode.weights import (
  BlockWeights,
  BLTWeights,
  ByteLMWeights,
  CrossWeights,
  DecoderWeights,
  EncoderWeights,
)
from blt_jax.models.config import BLTConfig, ByteLMConfig, TransformerConfig


def byte_lm_weights(config: ByteLMConfig, params: Any, dtype: str) -> ByteLMWeights:
  """Weights of a byte language model; matrices in `dtype`, norms in float32."""
  table = params["embedding"]["embedding"].astype(dtype)
  return ByteLMWeights(
    embedding=table,
    layers=stack_weights(config.transformer, params["transformer"]["layers"], dtype),
    norm=params["norm"]["scale"],
    output=table if config.tie_embeddings else matrix(params["output"], dtype),
  )


def blt_weights(config: BLTConfig, params: Any, dtype: str) -> BLTWeights:
  """Weights of a BLT; matrices in `dtype`, norms in float32."""
  embedder, latent = params["embedder"], params["latent"]
  table = embedder["bytes"]["embedding"].astype(dtype)
  has_hashes, is_projected = "hashes" in embedder, "projection" in latent
  takes_states = bool(config.entropy_state_dim)
  return BLTWeights(
    embedding=table,
    hashes=embedder["hashes"]["embedding"].astype(dtype) if has_hashes else None,
    ngrams=[
      embedder[f"ngrams_{i}"]["embedding"].astype(dtype)
      for i in range(len(config.ngram_vocab_sizes))
    ],
    encoder=_encoder(config, params["encoder"], dtype),
    latent_projection=matrix(latent["projection"], dtype) if is_projected else None,
    latent=stack_weights(config.latent, latent["transformer"]["layers"], dtype),
    decoder=_decoder(config, params["decoder"], dtype),
    output=table if config.tie_embeddings else matrix(params["output"], dtype),
    boundary_head=_boundary_head(params["boundary_head"]) if config.boundary_weight else None,
    states_to_encoder=matrix(params["states_to_encoder"], dtype) if takes_states else None,
    states_to_decoder=matrix(params["states_to_decoder"], dtype) if takes_states else None,
  )


def _boundary_head(params: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
  return params["norm"]["scale"], matrix(params["output"], "float32"), params["bias"][0]


def _encoder(config: BLTConfig, params: Any, dtype: str) -> EncoderWeights:
  layers = [
    _block(config.encoder, params[f"layers_{i}"], dtype)
    for i in range(config.encoder.num_layers)
  ]
  if config.encoder_cross is None:
    return EncoderWeights(layers, cross=[])
  names = [name for name in params if name.startswith("cross_")]
  names.sort(key=lambda name: int(name.removeprefix("cross_")))
  cross = [cross_weights(params[name], dtype) for name in names]
  return EncoderWeights(layers, cross, matrix(params["patch_projection"], dtype))


def _decoder(config: BLTConfig, params: Any, dtype: str) -> DecoderWeights:
  layers, cross = params["layers"], []
  if config.decoder_cross and config.decoder_cross.all_layers:
    cross = _unstack(layers["cross"], config.decoder.num_layers)
    layers = layers["block"]
  elif config.decoder_cross:
    cross = [params["cross_0"]]
  is_projected = config.project_latent
  return DecoderWeights(
    layers=stack_weights(config.decoder, layers, dtype),
    cross=[cross_weights(p, dtype) for p in cross],
    norm=params["norm"]["scale"],
    patch_projection=matrix(params["patch_projection"], dtype) if is_projected else None,
  )


def stack_weights(config: TransformerConfig, params: Any, dtype: str) -> list[BlockWeights]:
  """Weights of each block of a stack, from parameters with a leading axis of layers."""
  return [_block(config, p, dtype) for p in _unstack(params, config.num_layers)]


def _unstack(params: Any, num_layers: int) -> list[Any]:
  """One tree for each layer from a tree of arrays [L, ...]."""
  return [jax.tree.map(lambda x, i=i: x[i], params) for i in range(num_layers)]


def _block(config: TransformerConfig, params: Any, dtype: str) -> BlockWeights:
  attention, mlp = params["attention"], params["mlp"]
  query, key, value = (matrix(attention[n], dtype) for n in ("query", "key", "value"))
  query, key = _in_halves(query, config.head_dim), _in_halves(key, config.head_dim)
  return BlockWeights(
    attention_norm=params["attention_norm"]["scale"],
    query_key_value=jnp.concatenate([query, key, value]),
    output=matrix(attention["output"], dtype),
    mlp_norm=params["mlp_norm"]["scale"],
    gate_up=jnp.concatenate([matrix(mlp[n], dtype) for n in ("gate", "up")]),
    down=matrix(mlp["down"], dtype),
  )


def cross_weights(params: Any, dtype: str) -> CrossWeights:
  """Weights of a cross-attention; matrices in `dtype`, norms in float32."""
  return CrossWeights(
    query_norm=params["query_norm"]["scale"],
    context_norm=params["context_norm"]["scale"],
    query=matrix(params["query"], dtype),
    key_value=jnp.concatenate([matrix(params[n], dtype) for n in ("key", "value")]),
    output=matrix(params["output"], dtype),
  )


def _in_halves(matrix: jax.Array, head_dim: int) -> jax.Array:
  """Orders the rows of each head: the first of every rotated pair, then the seconds."""
  order = np.arange(head_dim).reshape(-1, 2).T.reshape(-1)
  heads = matrix.reshape(-1, head_dim, matrix.shape[1])
  return heads[:, order].reshape(matrix.shape)


def matrix(params: Any, dtype: str) -> jax.Array:
  """A matrix [out, in] from a kernel [in, out]."""
  return params["kernel"].astype(dtype).T
