"""Parameters in the form in which decoding reads them: fewer, larger matrices.

Layers are unstacked, matrices that read the same input are joined, and the rows of
queries and keys are ordered so that RoPE rotates the two halves of a head, which leaves
their products as they were. Matrices are [out, in]: each result reads one row.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from blt_jax.models.config import BLTConfig, ByteLMConfig, TransformerConfig

Weights = dict[str, Any]  # a tree of arrays


def byte_lm_weights(config: ByteLMConfig, params: Any, dtype: str) -> Weights:
  """Weights of a byte language model; matrices in `dtype`, norms in float32."""
  table = params["embedding"]["embedding"].astype(dtype)
  return {
    "embedding": table,
    "layers": _stack(config.transformer, params["transformer"]["layers"], dtype),
    "norm": params["norm"]["scale"],
    "output": table if config.tie_embeddings else _kernel(params["output"], dtype),
  }


def blt_weights(config: BLTConfig, params: Any, dtype: str) -> Weights:
  """Weights of a BLT; matrices in `dtype`, norms in float32.

  Raises:
    ValueError: the model has frequency n-gram tables, which are looked up on the host.
  """
  if config.ngram_vocab_sizes:
    raise ValueError(
      "This model has frequency n-gram tables, whose ids come from the host; generation "
      "runs on the device alone. Use a model with hashed n-grams (hash_sizes)."
    )
  embedder, latent = params["embedder"], params["latent"]
  table = embedder["bytes"]["embedding"].astype(dtype)
  weights = {
    "embedding": table,
    "encoder": _encoder(config, params["encoder"], dtype),
    "latent": _stack(config.latent, latent["transformer"]["layers"], dtype),
    "decoder": _decoder(config, params["decoder"], dtype),
    "output": table if config.tie_embeddings else _kernel(params["output"], dtype),
  }
  if "hashes" in embedder:
    weights["hashes"] = embedder["hashes"]["embedding"].astype(dtype)
  if "projection" in latent:
    weights["latent_projection"] = _kernel(latent["projection"], dtype)
  return weights


def _encoder(config, params, dtype):
  layers = [params[f"layers_{i}"] for i in range(config.encoder.num_layers)]
  weights = {"layers": [_block(config.encoder, p, dtype) for p in layers]}
  if config.encoder_cross:
    names = sorted(k for k in params if k.startswith("cross_"))
    names.sort(key=lambda name: int(name.removeprefix("cross_")))
    weights["cross"] = [_cross(params[name], dtype) for name in names]
    weights["patch_projection"] = _kernel(params["patch_projection"], dtype)
  return weights


def _decoder(config, params, dtype):
  weights = {"norm": params["norm"]["scale"]}
  layers = params["layers"]
  if config.decoder_cross and config.decoder_cross.all_layers:
    per_layer = _unstack(layers["cross"], config.decoder.num_layers)
    weights["cross"] = [_cross(p, dtype) for p in per_layer]
    layers = layers["block"]
  elif config.decoder_cross:
    weights["cross"] = [_cross(params["cross_0"], dtype)]
  weights["layers"] = _stack(config.decoder, layers, dtype)
  if config.project_latent:
    weights["patch_projection"] = _kernel(params["patch_projection"], dtype)
  return weights


def _stack(config, params, dtype):
  return [_block(config, p, dtype) for p in _unstack(params, config.num_layers)]


def _unstack(params, num_layers):
  return [jax.tree.map(lambda x, i=i: x[i], params) for i in range(num_layers)]


def _block(config: TransformerConfig, params, dtype):
  attention, mlp = params["attention"], params["mlp"]
  query, key = (_halves(_kernel(attention[n], dtype), config) for n in ("query", "key"))
  joined = [query, key, _kernel(attention["value"], dtype)]
  return {
    "attention_norm": params["attention_norm"]["scale"],
    "query_key_value": jnp.concatenate(joined),
    "output": _kernel(attention["output"], dtype),
    "mlp_norm": params["mlp_norm"]["scale"],
    "gate_up": jnp.concatenate([_kernel(mlp[n], dtype) for n in ("gate", "up")]),
    "down": _kernel(mlp["down"], dtype),
  }


def _cross(params, dtype):
  return {
    "query_norm": params["query_norm"]["scale"],
    "context_norm": params["context_norm"]["scale"],
    "query": _kernel(params["query"], dtype),
    "key_value": jnp.concatenate([_kernel(params[n], dtype) for n in ("key", "value")]),
    "output": _kernel(params["output"], dtype),
  }


def _halves(kernel, config):
  """Orders the rows of each head: first of every rotated pair, then the seconds."""
  order = np.arange(config.head_dim).reshape(-1, 2).T.reshape(-1)
  heads = kernel.reshape(-1, config.head_dim, kernel.shape[1])
  return heads[:, order].reshape(kernel.shape)


def _kernel(params, dtype):
  return params["kernel"].astype(dtype).T
