"""Fresh parameters of a model, or their shapes alone."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def init_params(model: nn.Module, rng: jax.Array) -> Any:
  """Fresh parameters, float32; leaves carry their logical names.

  Args:
    model: of any kind; it is called with a few tokens, each a patch.
    rng: key [].
  """
  size = max(4 // model.row_multiple, 1) * model.row_multiple
  tokens, lengths = jnp.zeros((1, size), jnp.int32), jnp.ones((1, size + 1), jnp.int32)
  if resolutions := getattr(model.config, "resolutions", 0):
    lengths = jnp.ones((resolutions, *lengths.shape), jnp.int32)
  tables = len(getattr(model.config, "ngram_vocab_sizes", ()))
  extras: dict[str, Any] = {}
  if tables:
    extras["ngram_ids"] = jnp.zeros((tables, *tokens.shape), jnp.int32)
  if width := getattr(model.config, "entropy_state_dim", 0):
    extras["entropy_states"] = jnp.zeros((*tokens.shape, width))
  return model.init(rng, tokens, lengths, **extras)["params"]


def fresh_params(model: nn.Module, seed: int) -> Any:
  """Fresh parameters, a plain tree of arrays."""
  return nn.meta.unbox(init_params(model, jax.random.key(seed)))


def abstract_params(model: nn.Module) -> Any:
  """Shapes and dtypes of a model's parameters, placed on the first local device."""
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  shapes = jax.eval_shape(lambda: fresh_params(model, seed=0))
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes)
