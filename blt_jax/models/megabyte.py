"""MegaByte: a global model over patches of P bytes, and a local model inside each of them.

arXiv 2305.07185. Patch k predicts the bytes kP + 1 to kP + P, at positions kP to kP + P - 1.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from blt_jax import tokenizer
from blt_jax.models import layers, partitioning, transformer
from blt_jax.models.config import TransformerConfig
from blt_jax.models.extras import Extras


@dataclasses.dataclass(frozen=True)
class MegaByteConfig:
  """A MegaByte (arXiv 2305.07185): a global model over patches, a local one inside them.

  Attributes:
    global_model: the stack over patches; its width is a multiple of `patch_size`.
    local_model: the stack over the bytes of a patch; it has no window, a patch is one.
    patch_size: bytes in every patch.
    max_patches: learned positions, and so the most patches of a row.
    vocab_size: V.
    dtype: of activations; parameters are float32.
  """

  global_model: TransformerConfig
  local_model: TransformerConfig
  patch_size: int = 8
  max_patches: int = 1024
  vocab_size: int = tokenizer.VOCAB_SIZE
  dtype: str = "float32"

  def __post_init__(self):
    if self.patch_size < 2 or self.max_patches < 1:
      raise ValueError(
        f"patch_size is {self.patch_size} and max_patches {self.max_patches}; they must be >= "
        "2 and >= 1."
      )
    if self.global_model.dim % self.patch_size:
      raise ValueError(
        f"global_model.dim {self.global_model.dim} must be a multiple of patch_size "
        f"{self.patch_size}: each byte of a patch gets an equal part of it."
      )
    if self.local_model.window is not None:
      raise ValueError(
        f"local_model.window is {self.local_model.window}; it must be None, since bytes see "
        "those of their own patch."
      )

  @property
  def local_stack(self) -> TransformerConfig:
    """The local model as it runs over a row: no byte sees more than a patch."""
    return dataclasses.replace(self.local_model, window=self.patch_size)

  @property
  def slice_dim(self) -> int:
    """Width of a byte's part of a patch."""
    return self.global_model.dim // self.patch_size


class MegaByte(nn.Module):
  """Two stacks: one reads whole patches, the other one byte after byte what it hands over.

  A patch of the global model is made of the P bytes before the first that it predicts: those
  at kP - P + 1 to kP. A document begins with the patch after the one that holds an EOS, so
  documents of a row have to start at multiples of P. Its first patch is a learned vector,
  hence its first id, a BOS, is never read.
  """

  config: MegaByteConfig
  batch_keys = ()  # what it may take beside tokens

  @property
  def row_multiple(self) -> int:
    """What divides the length of rows, and the positions where documents start in them."""
    return self.config.patch_size

  def setup(self):
    c = self.config
    self.global_embedding = _embedding(c.vocab_size, c.slice_dim, ("vocab", None))
    self.global_positions = _positions(c.max_patches, c.global_model.dim)
    self.global_start = _embedding(1, c.global_model.dim)
    self.global_transformer = transformer.Transformer(c.global_model)
    self.hand_over = layers.Linear(c.local_model.dim, (None, "embed"))
    self.local_embedding = _embedding(c.vocab_size, c.local_model.dim)
    self.local_positions = _positions(c.patch_size, c.local_model.dim)
    self.local_transformer = transformer.Transformer(c.local_stack)
    self.norm = layers.RMSNorm(c.local_model.norm_epsilon)
    self.output = layers.Linear(c.vocab_size, ("embed", "vocab"))

  def __call__(self, tokens: jax.Array, patch_lengths: jax.Array | None = None) -> jax.Array:
    """Predicts the next byte at every position.

    Args:
      tokens: int [B, S]; P divides S.
      patch_lengths: of no effect; all models are called alike.

    Returns:
      float32 logits [B, S, V].

    Raises:
      ValueError: rows are no whole number of patches, or have more than there are positions.
    """
    del patch_lengths
    c = self.config
    num_patches = self._count_patches(tokens.shape[1])
    starts = first_patches(tokens, c.patch_size)
    patches = self._think(tokens, starts)  # [B, K, D]
    slices = patches.reshape(*tokens.shape, c.slice_dim)  # [B, S, D / P]

    # What the local model reads at each place: its own byte too, but for the first.
    place = jnp.arange(tokens.shape[1]) % c.patch_size
    own = self.local_embedding()[tokens] * (place > 0)[None, :, None]
    x = (own + self.local_positions()[place][None]).astype(c.dtype) + self.hand_over(slices)
    x = partitioning.constrain(x, *partitioning.STATES)
    inside = jnp.broadcast_to(jnp.arange(num_patches).repeat(c.patch_size), tokens.shape)
    x, _ = self.local_transformer.resume(x, inside, place, None)
    return self.output(self.norm(x)).astype(jnp.float32)

  def forward(self, tokens: jax.Array, patch_lengths: Any = None) -> tuple[jax.Array, Extras]:
    """Logits [B, S, V] as of a call, and counts of the patches that hold ids [B, S]."""
    is_used = (tokens != tokenizer.BOE_ID).reshape(len(tokens), -1, self.config.patch_size)
    counts = {
      "patches": is_used.any(axis=2).sum(dtype=jnp.float32),
      "one_byte_patches": jnp.zeros(()),
      "patch_slots": jnp.float32(tokens.size // self.config.patch_size),
    }
    return self(tokens, patch_lengths), Extras(counts)

  def _think(self, tokens: jax.Array, starts: jax.Array) -> jax.Array:
    """What the global model gives for each patch, [B, K, D], of ids [B, S]."""
    c = self.config
    number = jnp.arange(starts.shape[1])
    first = jax.lax.cummax(jnp.where(starts, number, 0), axis=1)  # of each one's document
    position = number[None] - first
    before = jnp.roll(tokens, c.patch_size - 1, axis=1)
    patches = self.global_embedding()[before].reshape(*starts.shape, c.global_model.dim)
    patches = jnp.where(starts[..., None], self.global_start()[0], patches)
    patches = (patches + self.global_positions()[position]).astype(c.dtype)
    patches = partitioning.constrain(patches, *partitioning.STATES)
    return self.global_transformer.resume(patches, first, position, None)[0]

  def _count_patches(self, seq_len: int) -> int:
    c = self.config
    if seq_len % c.patch_size or seq_len > c.max_patches * c.patch_size:
      raise ValueError(
        f"A MegaByte with patch_size {c.patch_size} and max_patches {c.max_patches} reads rows "
        f"of {c.patch_size}, {2 * c.patch_size}, ... {c.max_patches * c.patch_size} bytes, not "
        f"{seq_len}; change config.data.seq_len or the model."
      )
    return seq_len // c.patch_size


def _embedding(rows: int, dim: int, axes: Any = ("vocab", "embed")) -> layers.Embedding:
  """A table [rows, D] of deviation 1, as in SpaceByte's MegaByte (kjslag/spacebyte).

  What the global model hands over has that of many layers: beside it, smaller embeddings would
  be lost on the local model.
  """
  return layers.Embedding(rows, dim, axes, std=lambda _: 1.0)


def _positions(count: int, dim: int) -> layers.Embedding:
  """Learned positions [count, D]; larger ones are noise on ids, which takes long to unlearn."""
  return layers.Embedding(count, dim, std=lambda _: 0.02)


def first_patches(tokens: jax.Array, patch_size: int) -> jax.Array:
  """Which patches of ids [B, S] begin a document: bool [B, S / patch_size]."""
  patches = tokens.reshape(len(tokens), -1, patch_size)
  ends = (patches == tokenizer.EOS_ID).any(axis=2)
  return jnp.pad(ends[:, :-1], ((0, 0), (1, 0)), constant_values=True)
