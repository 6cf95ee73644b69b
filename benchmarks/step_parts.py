"""What a training step consists of, each part timed alone at the step's sizes."""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import stopwatch

from blt_jax import kinds, patching, tokenizer
from blt_jax.models import blt, init, transformer
from blt_jax.models.config import BLTConfig, ByteLMConfig, TransformerConfig
from blt_jax.ops import attention, hash_tables, patch_attention

Config = BLTConfig | ByteLMConfig
Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Piece:
  """Something that a step does `count` times.

  Attributes:
    part: "attention", "cross-attention", "pooling", "products" or "tables".
    name: what it is.
    count: how often a step does it.
    function: takes `inputs` and `fixed`, gives an array.
    inputs: shapes of arrays; gradients are taken of all of them.
    fixed: arrays without gradients, or None.
  """

  part: str
  name: str
  count: int
  function: Callable[..., jax.Array]
  inputs: tuple[jax.ShapeDtypeStruct, ...]
  fixed: tuple[jax.Array | None, ...] = ()


def measure(config: Config, batch: Batch, param_dtype: str) -> list[dict[str, Any]]:
  """Times all pieces; call it on the mesh that the step runs on.

  Args:
    config: of the model.
    batch: `tokens` [B, S] and `patch_lengths` [B, P].
    param_dtype: of parameters.

  Returns:
    For each piece its part, name and count, and the seconds of all of it in a step, forward
    and forward + backward.
  """
  return [_measure_piece(piece) for piece in _pieces(config, batch, param_dtype)]


def _measure_piece(piece: Piece) -> dict[str, Any]:
  keys = jax.random.split(jax.random.key(0), len(piece.inputs))
  inputs = [
    jax.random.normal(key, x.shape, x.dtype) for key, x in zip(keys, piece.inputs, strict=True)
  ]

  @jax.jit
  def forward(inputs, fixed):
    return piece.function(*inputs, *fixed)

  @jax.jit
  def both(inputs, fixed):
    output, backward = jax.vjp(lambda *inputs: piece.function(*inputs, *fixed), *inputs)
    return output, backward(jnp.ones_like(output))

  def total(function):
    return piece.count * stopwatch.seconds(lambda: function(inputs, piece.fixed))

  measured = {
    "part": piece.part,
    "name": piece.name,
    "count": piece.count,
    "forward_s": total(forward),
    "forward_backward_s": total(both),
  }
  stopwatch.say(f"timed {piece.part}: {piece.name}")
  return measured


def _pieces(config: Config, batch: Batch, param_dtype: str) -> Iterator[Piece]:
  tokens, lengths = batch["tokens"], batch["patch_lengths"]
  documents = transformer.document_ids(tokens, tokenizer.EOS_ID)
  documents = documents if config.document_masks else None
  if isinstance(config, ByteLMConfig):
    yield _attention("bytes", config.transformer, documents, tokens.shape, config.dtype)
  else:
    ids = patching.patch_ids(lengths, tokens.shape[1])
    yield _attention("encoder", config.encoder, documents, tokens.shape, config.dtype)
    patches = blt.patch_document_ids(tokens, ids, lengths.shape[1])
    patches = patches if config.latent_document_masks else None
    yield _attention("latent", config.latent, patches, lengths.shape, config.dtype)
    yield _attention("decoder", config.decoder, documents, tokens.shape, config.dtype)
    yield from _between_bytes_and_patches(config, tokens, lengths, ids)
  yield from _products(config, tokens.shape, lengths.shape)
  yield from _tables(config, tokens, param_dtype)


def _attention(
  name: str, stack: TransformerConfig, documents: Any, shape: tuple[int, ...], dtype: str
) -> Piece:
  """Self-attention of a stack over [B, S] positions."""

  def attend(query, key, value, documents):
    return attention.attention(query, key, value, window=stack.window, document_ids=documents)

  query, key = (
    jax.ShapeDtypeStruct((*shape, heads, stack.head_dim), dtype)
    for heads in (stack.num_heads, stack.num_kv_heads)
  )
  return Piece("attention", name, stack.num_layers, attend, (query, key, key), (documents,))


def _between_bytes_and_patches(
  config: BLTConfig, tokens: jax.Array, lengths: jax.Array, ids: jax.Array
) -> Iterator[Piece]:
  """Pooling and both cross-attentions."""
  (batch, seq_len), num_patches, dim = tokens.shape, lengths.shape[1], config.encoder.dim

  def array(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch, *shape), config.dtype)

  pool = functools.partial(patch_attention.pool, num_patches=num_patches, modes=config.pooling)
  count = config.encoder.num_layers if config.encoder_cross and config.repool else 1
  yield Piece("pooling", config.pooling, count, pool, (array(seq_len, dim),), (ids,))

  vectors = num_patches, config.vectors_per_patch
  if cross := config.encoder_cross:
    count = config.encoder.num_layers if cross.all_layers else 1
    heads, kv_heads, head_dim = cross.num_heads, cross.num_kv_heads, dim // cross.num_heads
    attend = functools.partial(patch_attention.patches_attend, window=cross.window)
    read = array(seq_len, kv_heads, head_dim)
    inputs = array(*vectors, heads, head_dim), read, read
    yield Piece("cross-attention", "encoder", count, attend, inputs, (ids,))
  if cross := config.decoder_cross:
    count = config.decoder.num_layers if cross.all_layers else 1
    heads, kv_heads, head_dim = cross.num_heads, cross.num_kv_heads, dim // cross.num_heads
    own = patching.decoder_patch_ids(lengths, seq_len)
    attend = functools.partial(patch_attention.bytes_attend, window=cross.window)
    read = array(*vectors, kv_heads, head_dim)
    inputs = array(seq_len, heads, head_dim), read, read
    yield Piece("cross-attention", "decoder", count, attend, inputs, (own,))


def _products(
  config: Config, byte_shape: tuple[int, ...], patch_shape: tuple[int, ...]
) -> Iterator[Piece]:
  """Products with all matrices of the model; equal ones are counted."""
  num_bytes, num_patches = byte_shape[0] * byte_shape[1], patch_shape[0] * patch_shape[1]
  params = init.abstract_params(kinds.build_model(config))
  counts: collections.Counter[tuple[int, int, int]] = collections.Counter()
  for path, x in jax.tree_util.tree_leaves_with_path(params):
    names = [key.key for key in path]
    if names[-1] == "kernel":
      *layers, fan_in, features = x.shape
      rows = _rows(config, names, num_bytes, num_patches)
      counts[rows, fan_in, features] += layers[0] if layers else 1
  for (rows, fan_in, features), count in sorted(counts.items()):
    inputs = (rows, fan_in), (fan_in, features)
    shapes = tuple(jax.ShapeDtypeStruct(shape, config.dtype) for shape in inputs)
    yield Piece("products", f"{rows} x {fan_in} x {features}", count, jnp.dot, shapes)


def _rows(config: Config, names: list[str], num_bytes: int, num_patches: int) -> int:
  """How many vectors a step multiplies with the matrix of this path."""
  if names[0] == "latent" or "patch_projection" in names:
    return num_patches
  if any(name.startswith("cross") for name in names):
    of_patches = {"encoder": ("query", "output"), "decoder": ("key", "value")}[names[0]]
    return num_patches * config.vectors_per_patch if names[-2] in of_patches else num_bytes
  return num_bytes


def _tables(config: Config, tokens: jax.Array, param_dtype: str) -> Iterator[Piece]:
  """Look-ups of embeddings, as many rows of one table as the hashed n-grams ask for."""
  is_blt = isinstance(config, BLTConfig)
  dim = config.encoder.dim if is_blt else config.transformer.dim
  sizes = {"bytes": (config.vocab_size, tokens[None])}
  if is_blt and config.hash_rows:
    shape = config.num_hash_tables, *tokens.shape
    # The minimum of four is skewed, as n-grams of text are.
    draws = jax.random.randint(jax.random.key(0), (4, *shape), 0, config.hash_vocab_size)
    tables = jnp.arange(len(draws[0]))[:, None, None] * config.hash_vocab_size
    sizes["hashes"] = config.hash_rows, draws.min(axis=0) + tables

  def look_up(table, rows):
    return hash_tables.lookup_sum(table, rows, config.dtype)

  for name, (num_rows, rows) in sizes.items():
    table = jax.ShapeDtypeStruct((num_rows, dim), param_dtype)
    yield Piece("tables", name, 1, look_up, (table,), (rows,))
