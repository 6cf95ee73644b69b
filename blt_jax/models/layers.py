"""Building blocks: linear maps, norms, self-attention, SwiGLU, cross-attention.

Parameters are float32 and named by logical axes; they are cast where they are used.
Initialisation follows Meta `base_transformer.py`: normal, cut at 3 standard deviations.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from blt_jax.models import partitioning
from blt_jax.models.config import CrossAttentionConfig, TransformerConfig
from blt_jax.ops import attention, device, norm, patch_attention, rope

Std = Callable[[int], Any]  # fan-in -> standard deviation, a float or a scalar array


def fan_in_std(fan_in: int) -> float:
  """The standard deviation of all that is not told otherwise."""
  return fan_in**-0.5


def truncated_normal(std: Any, *axes: str | None) -> Callable[..., Any]:
  """Initialiser cut at three `std`, with a logical name for each axis."""
  init = nn.initializers.truncated_normal(std, lower=-3.0, upper=3.0)
  return nn.with_logical_partitioning(init, axes)


class Linear(nn.Module):
  """x [..., in] -> [..., features], without bias."""

  features: int
  axes: tuple[str, str | None]
  std: Std = fan_in_std

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    fan_in = x.shape[-1]
    init = truncated_normal(self.std(fan_in), *self.axes)
    kernel = self.param("kernel", init, (fan_in, self.features), jnp.float32)
    # A product of two matrices has the faster gradient on CPUs. On TPUs, heads would be
    # moved twice for it, to bring rows together and the row's positions next to each other.
    inputs = x if device.kernels() == "tpu" else x.reshape(-1, fan_in)
    flat = jnp.dot(inputs, kernel.astype(x.dtype)).reshape(*x.shape[:-1], self.features)
    # Named for policies of recomputation. Heads apart would take twice the memory on TPUs.
    return checkpoint_name(flat, self.name)


class RMSNorm(nn.Module):
  """Normalises [..., D]; see `ops.norm`."""

  epsilon: float

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.fan_out(x, 1)[1][0]

  @nn.compact
  def fan_out(self, x: jax.Array, readers: int) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Returns `x` for the residual, and what each of its readers gets; see `ops.norm`."""
    init = nn.with_logical_partitioning(nn.initializers.ones, ("norm",))
    scale = self.param("scale", init, (x.shape[-1],), jnp.float32)
    if device.kernels() != "triton":
      return norm.fan_out(x, scale, self.epsilon, readers)
    # The partitioner cannot split kernels.
    rows = ("batch", *(None,) * (x.ndim - 1))
    normalise = functools.partial(norm.fan_out, epsilon=self.epsilon, readers=readers)
    outputs = rows, (rows,) * readers
    return partitioning.per_shard(normalise, (rows, ("norm",)), outputs)(x, scale)


class Embedding(nn.Module):
  """Table [rows, D]; give ids, get float32 rows."""

  rows: int
  dim: int
  axes: tuple[str, str | None] = ("vocab", "embed")
  std: Std = fan_in_std

  @nn.compact
  def __call__(self) -> jax.Array:
    init = truncated_normal(self.std(self.dim), *self.axes)
    return self.param("embedding", init, (self.rows, self.dim), jnp.float32)


class SelfAttention(nn.Module):
  """Causal attention over [B, S, D] with rotary positions."""

  config: TransformerConfig
  std: Std = fan_in_std

  @nn.compact
  def __call__(
    self,
    inputs: Sequence[jax.Array],
    rope_table: tuple[jax.Array, jax.Array],
    document_ids: jax.Array | None,
    past: attention.Past | None = None,
  ) -> tuple[jax.Array, attention.Past | None]:
    """Returns [B, S, D], and the past of what follows where a past was given.

    Args:
      inputs: [B, S, D] for queries, keys and values; see `RMSNorm.fan_out`.
      rope_table: see `ops.rope`.
      document_ids: int [B, S] or None.
      past: what precedes the row; None for nothing.
    """
    c = self.config
    batch, seq_len, dim = inputs[0].shape

    def project(name, x, heads):
      flat = Linear(heads * c.head_dim, ("embed", "heads"), self.std, name=name)(x)
      return flat.reshape(batch, seq_len, heads, c.head_dim)

    query = rope.apply_rope(project("query", inputs[0], c.num_heads), rope_table)
    key = rope.apply_rope(project("key", inputs[1], c.num_kv_heads), rope_table)
    value = project("value", inputs[2], c.num_kv_heads)
    mixed = self._attend(query, key, value, document_ids, past).reshape(batch, seq_len, -1)
    # The reference scales the output matrix by the width of the model as well.
    output = Linear(dim, ("contracted", None), lambda _: self.std(dim), name="output")
    kept = None
    if past is not None and document_ids is not None:
      kept = attention.keep(past, attention.Past(key, value, document_ids))
    return output(mixed), kept

  def _attend(self, query, key, value, document_ids, past):
    def attend(query, key, value, document_ids, past):
      return attention.attention(
        query, key, value, window=self.config.window, document_ids=document_ids, past=past
      )

    rows: Any = ("batch", None)
    heads: Any = (*rows, "heads", None)
    inputs = (heads, heads, heads, rows, past and attention.Past(heads, heads, rows))
    on_shards = _on_shards(attend, inputs, heads, key.shape[2])
    return on_shards(query, key, value, document_ids, past)


def _on_shards(attend, inputs, outputs, num_kv_heads):
  """Makes attention run on each device's rows and heads.

  The partitioner cannot split kernels, and does not know that heads do not mix.
  """
  parts = partitioning.num_shards("heads")
  if num_kv_heads % parts:
    raise ValueError(
      f"num_kv_heads {num_kv_heads} must be a multiple of the {parts} devices that share "
      "heads; change it or config.mesh.tensor."
    )
  return partitioning.per_shard(attend, inputs, outputs)


class MLP(nn.Module):
  """SwiGLU over [B, S, D]."""

  hidden_dim: int
  std: Std = fan_in_std

  @nn.compact
  def __call__(self, inputs: Sequence[jax.Array]) -> jax.Array:
    """Returns [B, S, D] from two of it, for gate and up; see `RMSNorm.fan_out`."""

    def widen(name, x):
      wide = Linear(self.hidden_dim, ("embed", "mlp"), self.std, name=name)(x)
      return partitioning.constrain(wide, "batch", None, "mlp")

    hidden = nn.silu(widen("gate", inputs[0])) * widen("up", inputs[1])
    dim = inputs[0].shape[-1]
    return Linear(dim, ("contracted", None), self.std, name="down")(hidden)


class CrossAttention(nn.Module):
  """Attention between bytes and patches, its own residual included.

  Reference: Meta `model/latent_transformer.py`. Callers add the result to `x` once more,
  as both references do.
  """

  config: CrossAttentionConfig
  epsilon: float
  bytes_are_queries: bool
  std: Std = fan_in_std

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    context: jax.Array,
    patch_ids: jax.Array,
    patch_documents: jax.Array | None = None,
  ) -> jax.Array:
    """Returns x + attention in the shape of x.

    Args:
      x: queries, bytes [B, S, D] or patches [B, P, K, D].
      context: keys and values, the other of the two.
      patch_ids: [B, S] patch that each byte belongs to, or reads.
      patch_documents: [B, P] document of each patch, beyond which no window reaches, or None.
    """
    c = self.config
    dim = x.shape[-1]
    head_dim = dim // c.num_heads

    def project(name, inputs, heads):
      flat = Linear(heads * head_dim, ("embed", "heads"), self.std, name=name)(inputs)
      return flat.reshape(*inputs.shape[:-1], heads, head_dim)

    x, (for_query,) = RMSNorm(self.epsilon, name="query_norm").fan_out(x, 1)
    query = project("query", for_query, c.num_heads)
    _, for_both = RMSNorm(self.epsilon, name="context_norm").fan_out(context, 2)
    key = project("key", for_both[0], c.num_kv_heads)
    value = project("value", for_both[1], c.num_kv_heads)
    mixed = self._attend(query, key, value, patch_ids, patch_documents)
    mixed = mixed.reshape(*x.shape[:-1], -1)
    mixed = checkpoint_name(mixed, attention.SAVED_AS)
    output = Linear(dim, ("contracted", None), lambda _: self.std(dim), name="output")
    return x + output(mixed)

  def _attend(self, query, key, value, patch_ids, patch_documents):
    def attend(query, key, value, patch_ids, patch_documents):
      by_bytes, by_patches = patch_attention.bytes_attend, patch_attention.patches_attend
      read = by_bytes if self.bytes_are_queries else by_patches
      return read(query, key, value, patch_ids, self.config.window, patch_documents)

    # Kernels are not divided by the partitioner; else borders of shards only cost time.
    if partitioning.num_shards("heads") > 1 or patch_attention.has_kernels():
      own, other = (("batch", *(None,) * (x.ndim - 3), "heads", None) for x in (query, key))
      inputs = (own, other, other, ("batch", None), ("batch", None))
      attend = _on_shards(attend, inputs, own, key.shape[-2])
    return attend(query, key, value, patch_ids, patch_documents)
