"""The Byte Latent Transformer (arXiv 2412.09871)."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from blt_jax import patching, tokenizer
from blt_jax.models import layers, local, transformer
from blt_jax.models.config import BLTConfig
from blt_jax.ops import patch_attention


class LatentTransformer(nn.Module):
  """The big model over patches."""

  config: BLTConfig

  @nn.compact
  def __call__(self, patches: jax.Array, document_ids: jax.Array | None) -> jax.Array:
    """Patches [B, P, patch_dim] to latents [B, P, latent width]."""
    stack = transformer.Transformer(self.config.latent, name="transformer")
    return stack(self.project(patches), document_ids)

  @nn.compact
  def project(self, patches: jax.Array) -> jax.Array:
    """Patches [B, P, patch_dim] in the width of the transformer, [B, P, D]."""
    c = self.config
    if c.patch_dim == c.latent.dim:
      return patches
    return layers.Linear(c.latent.dim, ("contracted", None), name="projection")(patches)


def _zero_std(fan_in: int) -> float:
  """Of matrices that add nothing at first."""
  del fan_in
  return 0.0


class BLT(nn.Module):
  """Bytes to logits: embedder, local encoder, latent transformer, local decoder.

  Reference: Meta `model/blt.py` `ByteLatentTransformer`.
  """

  config: BLTConfig
  # What it may take beside tokens and patches.
  batch_keys: ClassVar[tuple[str, ...]] = ("ngram_ids",)
  row_multiple = 1  # what divides rows, and places of documents in them

  def setup(self):
    c = self.config
    self.embedder = local.Embedder(c)
    self.encoder = local.LocalEncoder(c)
    self.latent = LatentTransformer(c)
    self.decoder = local.LocalDecoder(c)
    if not c.tie_embeddings:
      self.output = layers.Linear(c.vocab_size, ("embed", "vocab"))
    if c.entropy_state_dim:
      self.states_to_encoder = layers.Linear(c.encoder.dim, ("embed", "heads"), _zero_std)
      self.states_to_decoder = layers.Linear(c.decoder.dim, ("embed", "heads"), _zero_std)

  def __call__(
    self,
    tokens: jax.Array,
    patch_lengths: jax.Array | None = None,
    ngram_ids: jax.Array | None = None,
    entropy_states: jax.Array | None = None,
  ) -> jax.Array:
    """Predicts the next byte at every position.

    Args:
      tokens: int [B, S].
      patch_lengths: int [B, P]; rows sum to S + 1, the next byte included, begin with 1
        and have their zeros on the right.
      ngram_ids: int [tables, B, S] of the frequency n-gram tables, where configured.
      entropy_states: [B, S, d] of the entropy model, where configured.

    Returns:
      float32 logits [B, S, V].

    Raises:
      ValueError: there are no lengths, or they do not fit (checked outside `jit` only).
    """
    if patch_lengths is None:
      raise ValueError("A BLT reads patches: give patch_lengths [B, P]; see blt_jax.patching.")
    batch_size, seq_len = tokens.shape
    patching.check_lengths(patch_lengths, seq_len)
    if len(patch_lengths) != batch_size:
      raise ValueError(
        f"{batch_size} rows of tokens and {len(patch_lengths)} of patch_lengths."
      )
    patch_ids = patching.patch_ids(patch_lengths, seq_len)
    decoder_ids = patching.decoder_patch_ids(patch_lengths, seq_len)
    num_patches = patch_lengths.shape[1]
    ids = patch_ids, decoder_ids
    return self.run(tokens, *ids, num_patches, ngram_ids, entropy_states)[0]

  def run(
    self,
    tokens: jax.Array,
    patch_ids: jax.Array,
    decoder_ids: jax.Array,
    num_patches: int,
    ngram_ids: jax.Array | None = None,
    entropy_states: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """As a call, of P patches given by their ids.

    Args:
      tokens: int [B, S].
      patch_ids: int [B, S], the patch of each byte.
      decoder_ids: int [B, S], the patch that the decoder reads at each byte.
      num_patches: P.
      ngram_ids: as of a call.
      entropy_states: as of a call.

    Returns:
      float32 logits [B, S, V]; and byte states [B, S, D] of the encoder.
    """
    width = 0 if entropy_states is None else entropy_states.shape[-1]
    if width != self.config.entropy_state_dim:
      raise ValueError(
        f"The model takes entropy_states of width {self.config.entropy_state_dim} and got "
        f"{width}; give those of its entropy model, or train with entropy_state_dim=0."
      )
    x = self.embed(tokens, ngram_ids)
    if entropy_states is not None:
      entropy_states = entropy_states.astype(x.dtype)
      x = x + self.states_to_encoder(entropy_states)
    states, patches = self.encode_embeddings(tokens, x, patch_ids, num_patches)
    read = states
    if entropy_states is not None:
      read = read + self.states_to_decoder(entropy_states)
    latents = self.think(tokens, patches, patch_ids)
    return self.decode(tokens, read, latents, decoder_ids, patch_ids), states

  def encode(
    self,
    tokens: jax.Array,
    patch_ids: jax.Array,
    num_patches: int,
    ngram_ids: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """Byte states [B, S, D] and patches [B, P, patch_dim] of ids [B, S]."""
    embeddings = self.embed(tokens, ngram_ids)
    return self.encode_embeddings(tokens, embeddings, patch_ids, num_patches)

  def embed(self, tokens: jax.Array, ngram_ids: jax.Array | None = None) -> jax.Array:
    """Embeddings [B, S, D] of ids [B, S] and of the n-grams that end at them."""
    documents = None
    if self.config.hash_document_masks:
      documents = transformer.document_ids(tokens, tokenizer.EOS_ID)
    return self.embedder(tokens, ngram_ids, documents)

  def encode_embeddings(
    self, tokens: jax.Array, embeddings: jax.Array, patch_ids: jax.Array, num_patches: int
  ) -> tuple[jax.Array, jax.Array]:
    """As `encode`, of what stands for the ids, [B, S, D]."""
    documents = None
    if self.config.document_masks:
      documents = transformer.document_ids(tokens, tokenizer.EOS_ID)
    patch_documents = self._cross_documents(tokens, patch_ids, num_patches)
    return self.encoder(embeddings, patch_ids, num_patches, documents, patch_documents)

  def think(self, tokens: jax.Array, patches: jax.Array, patch_ids: jax.Array) -> jax.Array:
    """Latents [B, P, latent width] of patches [B, P, patch_dim]."""
    documents = None
    if self.config.latent_document_masks:
      documents = patch_document_ids(tokens, patch_ids, patches.shape[1])
    return self.latent(patches, documents)

  def decode(
    self,
    tokens: jax.Array,
    states: jax.Array,
    latents: jax.Array,
    decoder_ids: jax.Array,
    patch_ids: jax.Array,
  ) -> jax.Array:
    """Logits [B, S, V] from byte states [B, S, D] and latents [B, P, latent width]."""
    documents = None
    if self.config.document_masks:
      documents = transformer.document_ids(tokens, tokenizer.EOS_ID)
    patch_documents = self._cross_documents(tokens, patch_ids, latents.shape[1])
    x = self.decoder(states, latents, decoder_ids, documents, patch_documents)
    if self.config.tie_embeddings:
      table = self.embedder.byte_table()
      return jnp.dot(x, table.T.astype(x.dtype)).astype(jnp.float32)
    return self.output(x).astype(jnp.float32)

  def _cross_documents(
    self, tokens: jax.Array, patch_ids: jax.Array, num_patches: int
  ) -> jax.Array | None:
    """Documents of patches [B, P], where windows of cross-attention must know them."""
    if not self.config.masks_cross_windows:
      return None
    return patch_document_ids(tokens, patch_ids, num_patches)


def patch_document_ids(tokens: jax.Array, patch_ids: jax.Array, num_patches: int) -> jax.Array:
  """Numbers the documents of patches: a patch with an EOS byte ends its document.

  Args:
    tokens: int [B, S].
    patch_ids: int [B, S].
    num_patches: P.

  Returns:
    int32 [B, P].
  """
  is_eos = (tokens == tokenizer.EOS_ID).astype(jnp.int32)
  ends = jnp.minimum(patch_attention.reduce_sum(is_eos, patch_ids, num_patches), 1)
  return jnp.cumsum(ends, axis=1) - ends
