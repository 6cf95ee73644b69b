"""The forward pass of a byte language model on an NVIDIA Hopper GPU, five kernels a layer.

The mathematics is that of `byte_lm.ByteLM`. What `ops.scoring` wants differently is
done to the weights: gains of norms and the scale of attention are in them, and in each head
the first features of all pairs come before the second ones.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from blt_jax.models.config import ByteLMConfig
from blt_jax.ops import attention, norm, rope, scoring
from blt_jax.ops.online_softmax import LOG2_E

Pair = tuple[jax.Array, jax.Array]


class Weights(NamedTuple):
  """Parameters as the kernels take them, in the model's dtype; pairs are [L, in, out].

  Attributes:
    embedding: [V, D].
    heads: those of queries, keys and values, first and second features of all pairs.
    output: of attention, left and right half of the columns.
    mlp: gate and up.
    down: left and right half of the columns.
    norm: [D], gain of the last norm.
    logits: [D, V].
  """

  embedding: jax.Array
  heads: Pair
  output: Pair
  mlp: Pair
  down: Pair
  norm: jax.Array
  logits: jax.Array


def fits(config: ByteLMConfig, batch_size: int, seq_len: int) -> bool:
  """Whether the kernels can run rows [B, S] of a model that keeps a past."""
  c = config.transformer
  heads = c.num_heads, c.num_kv_heads, c.head_dim
  return config.dtype == "bfloat16" and scoring.fits(
    (batch_size, seq_len), c.dim, c.mlp_dim, heads, c.window or 1
  )


def make_weights(params: Any, config: ByteLMConfig) -> Weights:
  """Takes the parameters of a `ByteLM` apart."""
  c = config.transformer
  layers = params["transformer"]["layers"]
  attend, mlp = layers["attention"], layers["mlp"]
  query = attend["query"]["kernel"] * (c.head_dim**-0.5 * LOG2_E)
  heads = jnp.concatenate([query, attend["key"]["kernel"], attend["value"]["kernel"]], axis=2)
  heads *= layers["attention_norm"]["scale"][..., None]
  gain = layers["mlp_norm"]["scale"][..., None]
  output = attend["output"]["kernel"]
  pairs = output.reshape(c.num_layers, c.num_heads, -1, 2, c.dim).swapaxes(2, 3)
  table = params["embedding"]["embedding"]
  weights = Weights(
    embedding=table,
    heads=(heads[..., ::2], heads[..., 1::2]),
    output=_halves(pairs.reshape(output.shape)),
    mlp=(mlp["gate"]["kernel"] * gain, mlp["up"]["kernel"] * gain),
    down=_halves(mlp["down"]["kernel"]),
    norm=params["norm"]["scale"],
    logits=table.T if config.tie_embeddings else params["output"]["kernel"],
  )
  return jax.tree.map(lambda x: x.astype(config.dtype), weights)


def _halves(matrices):
  left, right = jnp.split(matrices, 2, axis=2)
  return left, right


def resume(
  weights: Weights,
  config: ByteLMConfig,
  tokens: jax.Array,
  document_ids: jax.Array,
  positions: jax.Array,
  past: attention.Past,
) -> tuple[jax.Array, attention.Past]:
  """`ByteLM.resume`, but for the order of features in the past.

  Args:
    weights: of the model.
    config: one that `fits`.
    tokens: int [B, S].
    document_ids: int [B, S].
    positions: int [B, S].
    past: what the layers kept of the rows before; `transformer.empty_past` at first.

  Returns:
    float32 logits [B, S, V], and the past of what follows.
  """
  c = config.transformer
  window = past.key.shape[2]
  rows = positions.reshape(-1)
  cos, sin = rope.rope_table(rows, c.head_dim, c.rope_theta, c.rope_scaling)
  angles = scoring.angle_parts(cos[:, 0, ::2], sin[:, 0, ::2])
  seen = jnp.concatenate([past.document_ids[0], document_ids], axis=1)
  first = attention.first_visible(seen, window)[:, window:] - window

  def scale(squares):
    return jax.lax.rsqrt(squares.sum(axis=0) / c.dim + c.norm_epsilon)

  def run_layer(carry, layer):
    x, squares = carry
    layer, num_rotated = layer[None], c.num_heads + c.num_kv_heads
    heads = scoring.rotated(
      x, scale(squares), *weights.heads, layer, angles, num_rotated
    ).reshape(*tokens.shape, -1, c.head_dim)
    mixed = scoring.interval_attention(
      heads, (past.key, past.value), layer, first, c.num_heads
    ).reshape(len(x), -1)
    x, squares = scoring.added(x, mixed, *weights.output, layer)
    hidden = scoring.gated(x, scale(squares), *weights.mlp, layer)
    last = heads[:, -window:, c.num_heads :]
    return scoring.added(x, hidden, *weights.down, layer), jnp.split(last, 2, axis=2)

  x = weights.embedding[tokens.reshape(-1)]
  (x, _), (key, value) = jax.lax.scan(run_layer, (x, _squares(x)), jnp.arange(c.num_layers))
  x = norm.rms_norm(x, weights.norm, c.norm_epsilon)
  logits = jnp.dot(x, weights.logits).astype(jnp.float32).reshape(*tokens.shape, -1)
  documents = jnp.broadcast_to(document_ids[:, -window:], past.document_ids.shape)
  return logits, attention.Past(key, value, documents)


def _squares(x):
  """Parts of the sums of squares of rows [M, D], as `added` gives them."""
  parts = x.astype(jnp.float32).reshape(len(x), -1, scoring.SQUARES)
  return jnp.square(parts).sum(axis=2).T
