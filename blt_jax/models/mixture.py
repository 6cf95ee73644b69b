"""A BLT whose patches read finer patches before bytes: several resolutions of one text."""

import dataclasses
import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp

from blt_jax import patching, tokenizer
from blt_jax.models import layers, local, own_patches, transformer
from blt_jax.models.blt import BLT, patch_document_ids
from blt_jax.models.config import BLTConfig, TransformerConfig
from blt_jax.models.extras import Extras
from blt_jax.ops import patch_attention


@dataclasses.dataclass(frozen=True)
class MixtureConfig(BLTConfig):
  """A BLT with patches of several resolutions: coarse ones read fine ones, which read bytes.

  The fields of a `BLTConfig`, and these:

  Attributes:
    patch_sizes: bytes per patch in the mean of each of the R resolutions, from fine to coarse:
      what a study calibrates thresholds for, and FLOPs are counted by.
    num_patches: slots of the coarsest resolution, which is that of the latent transformer;
      None for as many as the finest has.
    finer_attention: patches of the finer resolutions attend to those before them, in one layer.
    read_finer: the decoder also reads the last finished patch of each finer resolution.
  """

  patch_sizes: tuple[float, ...] = (4.5, 9.0)
  num_patches: int | None = None
  finer_attention: bool = False
  read_finer: bool = False

  def __post_init__(self):
    super().__post_init__()
    sizes = self.patch_sizes
    if not sizes or min(sizes) < 1 or any(x >= y for x, y in itertools.pairwise(sizes)):
      raise ValueError(
        f"patch_sizes is {sizes}; it must hold the bytes per patch of each resolution, 1 or "
        "more, rising."
      )
    if self.num_patches is not None and self.num_patches < 3:
      raise ValueError(
        f"num_patches is {self.num_patches}; it must be >= 3, or None for as many as the "
        "finest resolution has."
      )
    if self.resolutions > 1 and self.encoder_cross is None:
      raise ValueError(
        "Patches of several resolutions read each other by cross-attention: set encoder_cross, "
        "or patch_sizes of one resolution."
      )
    if self.read_finer and self.decoder_cross is None:
      raise ValueError(
        "read_finer is of cross-attention out of patches: set decoder_cross, or leave it False."
      )
    if self.entropy_state_dim or self.boundary_weight:
      raise ValueError(
        "A mixture takes no states of an entropy model and has no boundary head; leave "
        "entropy_state_dim and boundary_weight at 0."
      )

  @property
  def resolutions(self) -> int:
    """R."""
    return len(self.patch_sizes)

  @property
  def patch_stack(self) -> TransformerConfig:
    """The layer over the patches of a finer resolution, each one vector of `patch_dim`.

    Heads and window, here of patches, are those of the encoder.
    """
    return TransformerConfig(
      self.patch_dim,
      num_layers=1,
      num_heads=self.vectors_per_patch * self.encoder.num_heads,
      mlp_multiple_of=self.encoder.mlp_multiple_of,
      window=self.encoder.window,
      norm_epsilon=self.encoder.norm_epsilon,
      rope_theta=self.encoder.rope_theta,
      remat=self.encoder.remat,
    )


class CoarserPatches(nn.Module):
  """Patches of a resolution: pooled from bytes, they read the patches of the next finer one."""

  config: MixtureConfig

  @nn.compact
  def __call__(
    self,
    states: jax.Array,
    finer: jax.Array,
    patch_ids: jax.Array,
    finer_ids: jax.Array,
    num_patches: int,
    patch_documents: jax.Array | None,
  ) -> jax.Array:
    """Returns patches [B, Q, patch_dim].

    Args:
      states: [B, S, D] of bytes.
      finer: [B, P, patch_dim] of the next finer resolution.
      patch_ids: int [B, S], the patch of each byte.
      finer_ids: int [B, P], the patch of each finer one; Q for those without bytes.
      num_patches: Q.
      patch_documents: int [B, Q], beyond which windows of patches do not reach, or None.
    """
    c, count = self.config, self.config.vectors_per_patch
    pool = local.on_rows(
      functools.partial(patch_attention.pool, num_patches=num_patches, modes=c.pooling)
    )
    project = layers.Linear(c.patch_dim, ("embed", "heads"), name="patch_projection")
    patches = local.slots(project(pool(states, patch_ids)), count)
    cross = transformer.recomputed(layers.CrossAttention, c.encoder)(
      c.encoder_cross,
      c.encoder.norm_epsilon,
      bytes_are_queries=False,
      std=transformer.depth_std(c.encoder, 0),
      name="cross_0",
    )
    vectors = local.slots(finer, count).reshape(len(finer), -1, c.encoder.dim)
    vector_ids = jnp.repeat(finer_ids, count, axis=1)
    patches = patches + cross(patches, vectors, vector_ids, patch_documents)
    return patches.reshape(*patches.shape[:2], -1)


class MixtureBLT(BLT):
  """A BLT of several resolutions; with one it is a BLT, to the bit."""

  config: MixtureConfig

  def setup(self):
    super().setup()
    c, finer = self.config, range(self.config.resolutions - 1)
    self.coarser = [CoarserPatches(c) for _ in finer]
    if c.finer_attention:
      self.attention = [transformer.Transformer(c.patch_stack) for _ in finer]
    if c.read_finer:
      options = (
        c.decoder_cross,
        c.decoder.norm_epsilon,
        True,
        transformer.depth_std(c.decoder, 0),
      )
      self.read = [layers.CrossAttention(*options) for _ in finer]

  def __call__(  # type: ignore[override]  # it takes no states of an entropy model
    self,
    tokens: jax.Array,
    patch_lengths: jax.Array | None = None,
    ngram_ids: jax.Array | None = None,
  ) -> jax.Array:
    """Predicts the next byte at every position.

    Args:
      tokens: int [B, S].
      patch_lengths: int [R, B, P] of each resolution, from fine to coarse, as
        `patching.nested_lengths` gives them: the rows of each are as a BLT's.
      ngram_ids: int [tables, B, S] of the frequency n-gram tables, where configured.

    Returns:
      float32 logits [B, S, V].

    Raises:
      ValueError: there are no lengths, or they do not fit or nest (checked outside `jit` only).
    """
    return self.forward(tokens, patch_lengths, ngram_ids)[0]

  def forward(
    self,
    tokens: jax.Array,
    patch_lengths: jax.Array | None = None,
    ngram_ids: jax.Array | None = None,
  ) -> tuple[jax.Array, Extras]:
    """Logits [B, S, V] as of a call; counts of latent patches, and where their slots last."""
    if patch_lengths is None:
      raise ValueError(
        "A mixture reads patches: give patch_lengths [R, B, P]; see patching.nested_lengths."
      )
    _check(self.config, tokens, patch_lengths)
    embeddings = self.embed(tokens, ngram_ids)
    return self.forward_embeddings(tokens, embeddings, patch_lengths)

  def forward_embeddings(
    self, tokens: jax.Array, embeddings: jax.Array, patch_lengths: jax.Array
  ) -> tuple[jax.Array, Extras]:
    """As `forward`, of what stands for the ids, [B, S, D]."""
    seq_len, num_patches = tokens.shape[1], patch_lengths.shape[2]
    num_slots = min(self.config.num_patches or num_patches, num_patches)
    ids = [patching.patch_ids(own, seq_len) for own in patch_lengths]
    closed = [patching.decoder_patch_ids(own, seq_len) for own in patch_lengths]
    extras = _count_slots(tokens, ids[-1], num_slots, num_patches)
    if num_slots < num_patches:  # the last slot takes what has none, and is never closed
      ids[-1] = jnp.minimum(ids[-1], num_slots - 1)
      closed[-1] = jnp.minimum(closed[-1], num_slots - 2)

    # From bytes to the finest patches, and from each resolution to the next.
    counts = [num_patches] * (len(ids) - 1) + [num_slots]
    states, patches = self.encode_embeddings(tokens, embeddings, ids[0], counts[0])
    read = states
    for finer, module in enumerate(self.coarser):
      patches = self._attend(finer, tokens, patches, ids[finer])
      read = self._read(finer, tokens, read, patches, closed[finer], ids[finer])
      own, count = ids[finer + 1], counts[finer + 1]
      documents = self._cross_documents(tokens, own, count)
      owners = _owners(patch_lengths[finer], own, count)
      patches = module(states, patches, own, owners, count, documents)

    latents = self.think(tokens, patches, ids[-1])
    return self.decode(tokens, read, latents, closed[-1], ids[-1]), extras

  def _attend(self, finer, tokens, patches, ids):
    """Patches [B, P, patch_dim] of a finer resolution, which know those before them."""
    if not self.config.finer_attention:
      return patches
    documents = None
    if self.config.latent_document_masks:
      documents = patch_document_ids(tokens, ids, patches.shape[1])
    return self.attention[finer](patches, documents)

  def _read(self, finer, tokens, x, patches, closed, ids):
    """Byte states [B, S, D] that have read the patches of a finer resolution."""
    c = self.config
    if not c.read_finer:
      return x
    documents = self._cross_documents(tokens, ids, patches.shape[1])
    vectors = local.slots(patches, c.vectors_per_patch)
    return x + self.read[finer](x, vectors, closed, documents)  # the residual counts twice


def _check(config: MixtureConfig, tokens: jax.Array, patch_lengths: jax.Array) -> None:
  patching.check_nested_lengths(patch_lengths, tokens.shape[1])
  if patch_lengths.shape[:2] != (config.resolutions, len(tokens)):
    raise ValueError(
      f"patch_lengths of shape {patch_lengths.shape} must begin with {config.resolutions}, as "
      f"many as patch_sizes {config.patch_sizes} has, and {len(tokens)}, the rows of tokens."
    )


def _owners(lengths: jax.Array, ids: jax.Array, num_patches: int) -> jax.Array:
  """The coarse patch of each fine one: int32 [B, P], Q for fine ones without bytes.

  Args:
    lengths: int [B, P] of fine patches.
    ids: int [B, S], the coarse patch of each byte.
    num_patches: Q, of coarse ones.
  """
  starts = jnp.cumsum(lengths, axis=1) - lengths
  found = jnp.take_along_axis(ids, jnp.minimum(starts, ids.shape[1] - 1), axis=1)
  return jnp.where(starts < ids.shape[1], found, num_patches)


def _count_slots(tokens: jax.Array, ids: jax.Array, num_slots: int, num_patches: int) -> Extras:
  """How many latent patches there are, and which bytes are of documents that have some.

  Args:
    tokens: int [B, S].
    ids: int [B, S], the coarsest patch of each byte, as if there were a slot for each.
    num_slots: Q.
    num_patches: P, which is enough for all.
  """
  is_input = tokens != tokenizer.BOE_ID
  is_first = jnp.diff(ids, axis=1, prepend=-1) > 0
  counts = {"latent_patches": is_first & is_input & (ids < num_slots)}
  has_slots = None
  if num_slots < num_patches:
    begins = own_patches.begin_documents(tokens)
    has_slots = jax.lax.cummax(jnp.where(begins, ids, 0), axis=1) <= num_slots - 2
    counts["slotless_inputs"] = is_input & (ids >= num_slots)
  return Extras({k: v.sum(dtype=jnp.float32) for k, v in counts.items()}, has_slots)
