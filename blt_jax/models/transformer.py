"""Transformer blocks and their stacking."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from blt_jax.models import late, layers, partitioning
from blt_jax.models.config import TransformerConfig
from blt_jax.ops import attention, device, rope

# What the backward pass finds saved, by the names of `layers.Linear`.
_ATTENTION = (attention.SAVED_AS,)
_PROJECTIONS = (*_ATTENTION, "query", "key", "value", "output")
_SAVED = {
  "full": (),
  "attention": _ATTENTION,
  "projections": _PROJECTIONS,
  "matmuls": (*_PROJECTIONS, "gate", "up"),
}


def depth_std(config: TransformerConfig, layer: Any) -> layers.Std:
  """Standard deviations of the matrices of layer `layer`, an int or a traced scalar."""
  factor = {
    "disabled": 1.0,
    "current_depth": jnp.sqrt(2.0 * (layer + 1)),
    "global_depth": (2.0 * (config.num_layers + 1)) ** 0.5,
    "dim_ratio": config.dim / 4096,
  }[config.depth_init]
  return lambda fan_in: config.init_std or layers.fan_in_std(fan_in) / factor


class Block(nn.Module):
  """x + attention(norm(x)), then x + mlp(norm(x))."""

  config: TransformerConfig

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    layer: Any,
    rope_table: tuple[jax.Array, jax.Array],
    document_ids: jax.Array | None,
    past: attention.Past | None = None,
  ) -> tuple[jax.Array, attention.Past | None]:
    """Returns ([B, S, D], past of what follows), in the form of a scan over layers.

    Args:
      x: [B, S, D].
      layer: index of this layer; initialisation depends on it.
      rope_table: see `ops.rope`.
      document_ids: int [B, S], or None where documents do not matter.
      past: what this layer kept of the positions before the row; None for a whole row.
    """
    c = self.config
    std = depth_std(c, layer)
    attend = layers.SelfAttention(c, std, name="attention")
    mlp = layers.MLP(c.mlp_dim, std, name="mlp")
    x, normed = layers.RMSNorm(c.norm_epsilon, name="attention_norm").fan_out(x, 3)
    attended, kept = attend(normed, rope_table, document_ids, past)
    x = partitioning.constrain(x + attended, *partitioning.STATES)
    x, normed = layers.RMSNorm(c.norm_epsilon, name="mlp_norm").fan_out(x, 2)
    x = x + mlp(normed)
    return partitioning.constrain(x, *partitioning.STATES), kept


def recomputed(layer: Any, config: TransformerConfig, in_loop: bool = False) -> Any:
  """The module class `layer` with its backward pass as `config.remat` says.

  What the backward pass finds per position and layer, and how many products with weights
  there are then, relative to "none" (latent transformer of the 1B model):

    "full"         the layer's input, D                           1.26
    "attention"    also N H of attention and its logsumexps       1.26
    "projections"  also queries, keys, values, output, about 4 D  1.15
    "matmuls"      also gate and up, 2 F                          1
    "dots"         all products with weights, 6 D + 2 F           1

  Attention itself runs once more with "full" and "dots"; without kernels (`ops.device`), its
  scores are computed again even with "none". On CPUs, layers that are written out recompute
  as "matmuls" does even with "none", see `as_function`.

  Args:
    layer: module class.
    config: says what to recompute.
    in_loop: whether layers are looped over. Outside a loop the compiler must be kept from
      merging both computations.
  """
  if config.remat == "none":
    return layer
  return nn.remat(layer, policy=_policy(config.remat), prevent_cse=not in_loop)


def _policy(remat: str) -> Any:
  if remat == "dots":
    return jax.checkpoint_policies.dots_with_no_batch_dims_saveable
  return jax.checkpoint_policies.save_only_these_names(*_SAVED[remat])


def stacked(
  layer: Any, config: TransformerConfig, num_shared: int, has_past: bool = False
) -> Any:
  """What makes a module that runs `layer` once per layer of `config`.

  Its parameters have a leading axis named "layers".

  Args:
    layer: module class called as (x, layer index, *shared) -> (x, None).
    config: says how many layers, what to recompute, whether to unroll.
    num_shared: number of arguments that all layers share.
    has_past: whether a last argument holds something for each layer.
  """
  scanned = nn.scan(
    recomputed(layer, config, in_loop=not (config.unroll and has_past)),
    variable_axes={"params": 0},
    split_rngs={"params": True},
    in_axes=(0,) + (nn.broadcast,) * num_shared + (0,) * has_past,
    length=config.num_layers,
    unroll=config.num_layers if config.unroll and has_past else 1,  # else see `make`
    metadata_params={nn.PARTITION_NAME: "layers"},
  )

  def make(*args, name):
    stack = scanned(*args, name=name)
    if not config.unroll or has_past or stack.is_initializing():
      return stack
    run = as_function(layer, config, *args)
    return functools.partial(_run_in_turn, run, stack.variables["params"])

  return make


def as_function(layer: Any, config: TransformerConfig, *args: Any) -> Any:
  """One layer that is written out, with its backward pass as `config.remat` says.

  On CPUs it runs late, and "none" is "matmuls": what is no product with weights is never worth
  its memory there.

  Args:
    layer: module class called as (x, layer index, *shared) -> (x, ...).
    config: says what to recompute.
    *args: of the class.

  Returns:
    (parameters of the layer, x, layer index, *shared) -> x.
  """
  on_cpu = device.on_cpu()
  module = (layer if on_cpu else recomputed(layer, config))(*args, parent=None)

  @jax.jit  # which traces the layer once for all
  def run(params, x, index, *shared):
    return module.apply({"params": params}, x, index, *shared)[0]

  if not on_cpu:
    return run
  return late.recomputed(run, _policy("matmuls" if config.remat == "none" else config.remat))


def _run_in_turn(run, stacked_params, x, indices, *shared):
  """Runs the layers that `stacked` makes, written out: ([B, S, D], None)."""
  for i, index in enumerate(indices):
    stacked_params, params, x = _take_layer(stacked_params, x, i)
    x = run(params, x, index, *shared)
  return x, None


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _take_layer(stacked_params, x, i):
  """The stack again, the parameters of layer i, and what the layer reads.

  So the gradient of the stack comes by way of the layers, last one first, and each writes
  its own into its place. A layer's backward pass awaits the gradient of the second layer above:
  left to itself, XLA multiplies all gradients of parameters in the end, and keeps until then
  what they need. That of the layer above is not awaited; devices may add it up meanwhile.
  """
  return stacked_params, jax.tree.map(lambda params: params[i], stacked_params), x


def _put_layer(i, _, gradients):
  total, layer, x = gradients
  if i == len(jax.tree.leaves(total)[0]) - 1:  # nothing stands there yet
    total = jax.tree.map(lambda params: jax.lax.empty(params.shape, params.dtype), total)
  else:
    total, x = jax.lax.optimization_barrier((total, x))

  def put(total, layer):
    return jax.lax.dynamic_update_index_in_dim(total, layer, i, 0)

  return jax.tree.map(put, total, layer), x


_take_layer.defvjp(lambda params, x, i: (_take_layer(params, x, i), None), _put_layer)


class Transformer(nn.Module):
  """A stack of blocks over [B, S, D]; positions count from 0 in each row."""

  config: TransformerConfig

  @nn.compact
  def __call__(self, x: jax.Array, document_ids: jax.Array | None) -> jax.Array:
    return self.resume(x, document_ids, None, None)[0]

  @nn.compact
  def resume(
    self,
    x: jax.Array,
    document_ids: jax.Array | None,
    positions: jax.Array | None,
    past: attention.Past | None,
  ) -> tuple[jax.Array, attention.Past | None]:
    """Runs a row that goes on after others.

    Args:
      x: [B, S, D].
      document_ids: int [B, S], or None where documents do not matter.
      positions: int [S] or [B, S], for RoPE; None for those from 0 on.
      past: what the layers kept, each array with a leading axis L; see `empty_past`.

    Returns:
      [B, S, D], and the past of what follows.
    """
    c = self.config
    if positions is None:
      table = position_table(c, x.shape[1])
    else:
      table = rope.rope_table(positions, c.head_dim, c.rope_theta, c.rope_scaling)
    blocks = stacked(Block, c, num_shared=2, has_past=past is not None)(c, name="layers")
    rest = () if past is None else (past,)
    return blocks(x, jnp.arange(c.num_layers), table, document_ids, *rest)


def empty_past(config: TransformerConfig, batch_size: int, dtype: str) -> attention.Past:
  """The past of rows before which nothing was; the stack must have a window."""
  shape = (config.num_layers, batch_size, config.window)
  states = jnp.zeros((*shape, config.num_kv_heads, config.head_dim), dtype)
  return attention.Past(states, states, jnp.full(shape, attention.NOTHING, jnp.int32))


def position_table(config: TransformerConfig, length: int) -> tuple[jax.Array, jax.Array]:
  """The rotation table of positions 0 to length - 1."""
  c = config
  return rope.row_table(length, c.head_dim, c.rope_theta, c.rope_scaling)


def document_ids(tokens: jax.Array, eos_id: int) -> jax.Array:
  """Numbers the documents of each row: int32 [B, S]; an EOS belongs to its document."""
  ends = (tokens == eos_id).astype(jnp.int32)
  return jnp.cumsum(ends, axis=1) - ends
