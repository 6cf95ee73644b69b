"""The models over bytes: embedder, local encoder, local decoder.

Reference: Meta `model/local_models.py` and `model/blt.py`.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from blt_jax import hashing
from blt_jax.models import layers, own_patches, partitioning, transformer
from blt_jax.models.config import BLTConfig
from blt_jax.ops import hash_tables, patch_attention


class Embedder(nn.Module):
  """Sum of the embeddings of a byte and of the n-grams that end at it."""

  config: BLTConfig

  def setup(self):
    c = self.config
    self.bytes = layers.Embedding(c.vocab_size, c.encoder.dim)
    if c.hash_rows:  # one table, since it spreads more evenly over devices than many
      self.hashes = layers.Embedding(c.hash_rows, c.encoder.dim, ("hash_rows", None))
    self.ngrams = [layers.Embedding(rows, c.encoder.dim) for rows in c.ngram_vocab_sizes]

  def __call__(
    self,
    tokens: jax.Array,
    ngram_ids: jax.Array | None = None,
    document_ids: jax.Array | None = None,
  ) -> jax.Array:
    """Embeds ids.

    Args:
      tokens: int [B, S].
      ngram_ids: int [tables, B, S] of the frequency n-gram tables, where configured.
      document_ids: int [B, S] to hash inside documents, or None.

    Returns:
      [B, S, D].
    """
    c = self.config
    ids_by_table = [] if ngram_ids is None else list(ngram_ids)
    if len(ids_by_table) != len(c.ngram_vocab_sizes):
      raise ValueError(
        f"The model has {len(c.ngram_vocab_sizes)} frequency n-gram tables, ngram_ids "
        f"has {len(ids_by_table)}; look ids up with hashing.NgramTable."
      )
    embeddings = self._sum_rows(self.bytes(), jnp.asarray(tokens)[None], "vocab", "float32")
    if c.hash_rows:
      tokens = jnp.asarray(tokens)
      places = None
      if c.pixel_ngrams:
        places = own_patches.positions(own_patches.begin_documents(tokens))
      rows = hash_rows(c, tokens, document_ids, places)
      embeddings += self._sum_rows(self.hashes(), rows, "hash_rows", c.dtype)
    for ngrams, ids in zip(self.ngrams, ids_by_table, strict=True):
      embeddings += self._sum_rows(ngrams(), ids[None], "vocab", "float32")
    return partitioning.constrain(embeddings.astype(c.dtype), "batch", None, None)

  def _sum_rows(self, table: jax.Array, rows: jax.Array, name: str, dtype: str) -> jax.Array:
    """The sum of rows [T, B, S] of a table with `name` for its rows, float32 [B, S, D]."""
    seq_len = rows.shape[2]
    look_up = functools.partial(
      hash_tables.lookup_sum, dtype=dtype, axes=partitioning.axes_of(name)
    )
    # Devices that have the same rows share their bytes, the last one with some to spare.
    spare = -seq_len % partitioning.num_shards("bytes")
    rows = jnp.pad(rows, ((0, 0), (0, 0), (0, spare)))
    inputs, outputs = [(name, None), (None, "batch", "bytes")], ("batch", "bytes", None)
    return partitioning.per_shard(look_up, inputs, outputs)(table, rows)[:, :seq_len]

  def byte_table(self) -> jax.Array:
    """The embeddings [V, D] of the ids."""
    return self.bytes()


def hash_rows(
  config: BLTConfig,
  tokens: jax.Array,
  document_ids: jax.Array | None,
  places: jax.Array | None = None,
) -> jax.Array:
  """Rows of the hashed n-grams at each byte, in all tables together.

  Args:
    config: of the model.
    tokens: int [B, S].
    document_ids: int [B, S] to hash inside documents, or None.
    places: int [B, S], of each id in its document, for n-grams of pixels.

  Returns:
    int32 [T, B, S], of T tables.

  Raises:
    ValueError: n-grams of pixels of pictures whose size nobody gave.
  """
  c, ids = config, []
  if c.hash_sizes:
    hashed = c.hash_sizes, c.hash_vocab_size, c.hash_functions
    ids.append(hashing.ngram_hash_ids(tokens, *hashed, document_ids))
  if c.pixel_ngrams:
    if not c.picture_size:
      raise ValueError(
        "pixel_ngrams need picture_size, height, width and channels; training takes it from "
        "the pictures of config.data."
      )
    hashed = c.picture_size, c.hash_vocab_size, c.hash_functions
    ids.append(hashing.pixel_hash_ids(tokens, places, *hashed))
  tables = np.arange(c.num_hash_tables, dtype=np.int32)[:, None, None]
  return jnp.concatenate(ids) + tables * c.hash_vocab_size


def slots(patches: jax.Array, count: int) -> jax.Array:
  """[B, P, K * D] -> [B, P, K, D], gathered once, not wherever heads are cut anew."""
  patches = partitioning.constrain(patches, *partitioning.STATES)
  return patches.reshape(*patches.shape[:2], count, -1)


def on_rows(function: Any) -> Any:
  """Makes a function of states and ids run on each device's rows where it has kernels.

  The partitioner cannot split kernels.
  """
  if not patch_attention.has_kernels():
    return function
  inputs = partitioning.STATES, ("batch", None)
  return partitioning.per_shard(function, inputs, partitioning.STATES)


class LocalEncoder(nn.Module):
  """Bytes to byte states and patches."""

  config: BLTConfig

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    patch_ids: jax.Array,
    num_patches: int,
    document_ids: jax.Array | None,
    patch_documents: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """Returns byte states [B, S, D] and patches [B, P, patch_dim].

    Args:
      x: [B, S, D] embeddings.
      patch_ids: int [B, S] patch of each byte.
      num_patches: P.
      document_ids: int [B, S] or None.
      patch_documents: int [B, P], beyond which windows of patches do not reach, or None.
    """
    c = self.config
    table = transformer.position_table(c.encoder, x.shape[1])
    if c.encoder_cross:
      first_read = 0 if c.encoder_cross.all_layers else c.encoder.num_layers - 1
      features = c.vectors_per_patch * c.encoder.dim
      project = layers.Linear(features, ("embed", "heads"), name="patch_projection")
    pool = on_rows(
      functools.partial(patch_attention.pool, num_patches=num_patches, modes=c.pooling)
    )
    patches = None
    for layer in range(c.encoder.num_layers):
      x = self._run_block(layer, x, table, document_ids)
      if c.encoder_cross and layer >= first_read:
        if patches is None or c.repool:
          patches = slots(project(pool(x, patch_ids)), c.vectors_per_patch)
        patches = self._read_bytes(layer - first_read, patches, x, patch_ids, patch_documents)
    if patches is None:
      return x, pool(x, patch_ids)
    return x, patches.reshape(*patches.shape[:2], -1)

  def _run_block(self, index, x, table, document_ids):
    """The layer number `index`, [B, S, D] to [B, S, D]."""
    stack, name = self.config.encoder, f"layers_{index}"
    if self.is_initializing():
      return transformer.Block(stack, name=name)(x, index, table, document_ids)[0]
    run = transformer.as_function(transformer.Block, stack, stack)
    return run(self.variables["params"][name], x, index, table, document_ids)

  def _read_bytes(self, index, patches, x, patch_ids, patch_documents):
    """The cross-attention number `index`: patches [B, P, K, D] read the bytes [B, S, D]."""
    stack = self.config.encoder
    cross = transformer.recomputed(layers.CrossAttention, stack)(
      self.config.encoder_cross,
      stack.norm_epsilon,
      bytes_are_queries=False,
      std=transformer.depth_std(stack, index),
      name=f"cross_{index}",
    )
    return patches + cross(patches, x, patch_ids, patch_documents)  # the residual counts twice


class DecoderLayer(nn.Module):
  """Cross-attention to patches, then a block."""

  config: BLTConfig

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    layer: Any,
    patches: jax.Array,
    patch_ids: jax.Array,
    rope_table: tuple[jax.Array, jax.Array],
    document_ids: jax.Array | None,
    patch_documents: jax.Array | None,
  ) -> tuple[jax.Array, None]:
    """Returns ([B, S, D], None), in the form of a scan over layers."""
    c = self.config
    cross = layers.CrossAttention(
      c.decoder_cross,
      c.decoder.norm_epsilon,
      bytes_are_queries=True,
      std=transformer.depth_std(c.decoder, layer),
      name="cross",
    )
    x = x + cross(x, patches, patch_ids, patch_documents)  # the residual counts twice
    return transformer.Block(c.decoder, name="block")(x, layer, rope_table, document_ids)


class LocalDecoder(nn.Module):
  """Byte states and latent patches to byte states, normalised."""

  config: BLTConfig

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    latents: jax.Array,
    patch_ids: jax.Array,
    document_ids: jax.Array | None,
    patch_documents: jax.Array | None = None,
  ) -> jax.Array:
    """Returns [B, S, D].

    Args:
      x: [B, S, D] byte states of the encoder.
      latents: [B, P, latent width].
      patch_ids: int [B, S] patch that each byte reads.
      document_ids: int [B, S] or None.
      patch_documents: int [B, P], beyond which windows of patches do not reach, or None.
    """
    c = self.config
    if c.project_latent:
      features = c.decoder_slots * c.decoder.dim
      projection = layers.Linear(features, ("embed", "heads"), name="patch_projection")
      latents = projection(latents)
    patches = slots(latents, c.decoder_slots)
    table = transformer.position_table(c.decoder, x.shape[1])
    indices = jnp.arange(c.decoder.num_layers)
    if c.decoder_cross and c.decoder_cross.all_layers:
      stack = transformer.stacked(DecoderLayer, c.decoder, num_shared=5)
      shared = patches, patch_ids, table, document_ids, patch_documents
      x, _ = stack(c, name="layers")(x, indices, *shared)
    else:
      x = self._read_once(x, patches, patch_ids, patch_documents)
      stack = transformer.stacked(transformer.Block, c.decoder, num_shared=2)
      x, _ = stack(c.decoder, name="layers")(x, indices, table, document_ids)
    return layers.RMSNorm(c.decoder.norm_epsilon, name="norm")(x)

  def _read_once(self, x, patches, patch_ids, patch_documents):
    """Takes the patches in before the first layer only."""
    c = self.config
    if c.decoder_cross is None:
      return x + on_rows(patch_attention.expand)(patches[:, :, 0], patch_ids)
    std = transformer.depth_std(c.decoder, 0)
    epsilon = c.decoder.norm_epsilon
    cross = layers.CrossAttention(c.decoder_cross, epsilon, True, std, name="cross_0")
    return x + cross(x, patches, patch_ids, patch_documents)
