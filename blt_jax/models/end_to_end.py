"""A BLT that measures entropies inside, with one model and one loss."""

import dataclasses
from typing import Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from blt_jax import tokenizer
from blt_jax.models import byte_heads, layers, own_patches, partitioning, transformer
from blt_jax.models.blt import BLT
from blt_jax.models.config import BLTConfig, TransformerConfig
from blt_jax.models.extras import Extras
from blt_jax.ops import losses

Head = Literal["next", "backward"]
Scalars = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class EndToEndConfig(BLTConfig):
  """A BLT with a tiny transformer before its local encoder, which says where patches start.

  The fields of a `BLTConfig`, and these:

  Attributes:
    predictor: the tiny transformer over bytes, with a window and narrow MLPs.
    head: what it predicts: "next", the next byte, whose entropy says whether that byte
      starts a patch; or "backward", the newest bytes that it has read, where the entropy of
      the byte before says whether the current byte starts a patch.
    backward_bytes: n, the bytes that the head "backward" predicts, the current one included.
    head_weight: of the head's cross entropy, beside the cross entropy of the decoder.
    skip: byte and n-gram embeddings are added to the states that go into the local encoder.
    num_patches: P, patch slots of a row; None for all that there can be.
    patch_size: bytes per patch in the mean, which the threshold follows while training.
    threshold: nats, where it begins.
    threshold_rate: nats by which a step moves it at first, at most; less and less, down to
      nothing in the last step.
  """

  predictor: TransformerConfig = TransformerConfig(
    dim=256, num_layers=4, num_heads=8, mlp_dim=256, window=512
  )
  head: Head = "next"
  backward_bytes: int = 4
  head_weight: float = 1.0
  skip: bool = True
  num_patches: int | None = None
  patch_size: float = 4.5
  threshold: float = 2.0
  threshold_rate: float = 0.05

  def __post_init__(self):
    super().__post_init__()
    if self.head not in get_args(Head):
      raise ValueError(f"Unknown head {self.head!r}; choose one of {get_args(Head)}.")
    if self.backward_bytes < 2:
      raise ValueError(
        f"backward_bytes is {self.backward_bytes}; it must be >= 2, since the byte before the "
        "current one makes the patches."
      )
    if self.num_patches is not None and self.num_patches < 3:
      raise ValueError(f"num_patches is {self.num_patches}; it must be >= 3, or None for all.")
    if self.patch_size <= 1:
      raise ValueError(f"patch_size is {self.patch_size}; it must be > 1 byte.")
    if min(self.head_weight, self.threshold_rate) < 0:
      raise ValueError(
        f"head_weight {self.head_weight} and threshold_rate {self.threshold_rate} must be >= 0."
      )
    needs_skip = self.num_hash_tables or self.ngram_vocab_sizes or self.tie_embeddings
    if not self.skip and needs_skip:
      raise ValueError(
        "Without skip no byte or n-gram embeddings are read: set hash_sizes=(), "
        "pixel_ngrams=False and tie_embeddings=False, and leave ngram_vocab_sizes (and "
        "config.data.ngram_tables) empty."
      )
    if self.entropy_state_dim or self.boundary_weight:
      raise ValueError(
        "An end_to_end measures entropies itself; leave entropy_state_dim and boundary_weight "
        "at 0."
      )

  @property
  def num_heads(self) -> int:
    """Bytes that the head predicts at each position."""
    return 1 if self.head == "next" else self.backward_bytes

  @property
  def is_late(self) -> bool:
    """Whether it is known only at a byte that it starts a patch, and not at the byte before."""
    return self.head == "backward"

  def patch_slots(self, seq_len: int) -> int:
    """P of rows of `seq_len` bytes."""
    return self.num_patches or seq_len + 1


class Predictor(nn.Module):
  """A tiny transformer over bytes; its parameters have the names of a `ByteLM`."""

  config: EndToEndConfig

  @nn.compact
  def __call__(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns states [B, S, d], and float32 logits [B, S, n, V] of the bytes of the head.

    Args:
      tokens: int [B, S].
    """
    c, stack = self.config, self.config.predictor
    documents = None
    if c.document_masks:
      documents = transformer.document_ids(tokens, tokenizer.EOS_ID)
    table = layers.Embedding(c.vocab_size, stack.dim, name="embedding")()
    x = partitioning.constrain(table[tokens].astype(c.dtype), *partitioning.STATES)
    x = transformer.Transformer(stack, name="transformer")(x, documents)
    x = layers.RMSNorm(stack.norm_epsilon, name="norm")(x)
    logits = layers.Linear(c.num_heads * c.vocab_size, ("embed", "vocab"), name="output")(x)
    return x, logits.astype(jnp.float32).reshape(*tokens.shape, c.num_heads, c.vocab_size)


class EndToEndBLT(BLT):
  """A BLT that makes its own patches, by the entropies of a head on its first layers.

  No gradient passes through the boundaries. The threshold is an argument: it moves while
  training, from `start_scalars` on by `move_scalars` after each step.
  """

  config: EndToEndConfig

  def setup(self):
    super().setup()
    self.predictor = Predictor(self.config)
    self.bridge = layers.Linear(self.config.encoder.dim, ("embed", "heads"))

  def __call__(  # type: ignore[override]  # it has no entropy model, a BLT no threshold
    self,
    tokens: jax.Array,
    patch_lengths: jax.Array | None = None,
    ngram_ids: jax.Array | None = None,
    *,
    threshold: jax.Array | float | None = None,
  ) -> jax.Array:
    """Predicts the next byte at every position.

    Args:
      tokens: int [B, S].
      patch_lengths: of no effect; all models are called alike.
      ngram_ids: as of a BLT.
      threshold: nats [], above which a patch starts; by default that of the config.

    Returns:
      float32 logits [B, S, V].
    """
    return self.forward(tokens, patch_lengths, ngram_ids, threshold=threshold)[0]

  def forward(
    self,
    tokens: jax.Array,
    patch_lengths: jax.Array | None = None,
    ngram_ids: jax.Array | None = None,
    *,
    threshold: jax.Array | float | None = None,
  ) -> tuple[jax.Array, Extras]:
    """Logits [B, S, V] as of a call, the loss of the head, and the patches that were made."""
    del patch_lengths
    c = self.config
    states, heads = self.predictor(tokens)
    patches, _ = self._patch(tokens, heads, threshold)

    # The BLT, whose bytes are what the tiny transformer made of them.
    x = self.bridge(states)
    if c.skip:
      x = x + self.embed(tokens, ngram_ids)
    states, vectors = self.encode_embeddings(tokens, x, patches.ids, patches.num_slots)
    latents = self.think(tokens, vectors, patches.ids)
    logits = self.decode(tokens, states, latents, patches.decoder_ids, patches.ids)

    nats, count = byte_heads.sum_nats(tokens, heads, c.is_late)
    metrics = own_patches.counts(tokens, patches) | {"head_nats": nats, "head_targets": count}
    head_loss = c.head_weight * nats / c.num_heads
    return logits, Extras(metrics, patches.has_slots, {"head": head_loss}, patches.lengths)

  def patch(
    self, tokens: jax.Array, threshold: jax.Array | float | None = None
  ) -> tuple[own_patches.OwnPatches, jax.Array]:
    """The patches of ids, and the entropies that decide about them.

    Args:
      tokens: int [B, S].
      threshold: as of a call.

    Returns:
      The patches; and float32 [B, S] nats, which at t decide about byte t + 1, or with the head
      "backward" about byte t.
    """
    return self._patch(tokens, self.predictor(tokens)[1], threshold)

  def _patch(
    self, tokens: jax.Array, heads: jax.Array, threshold: jax.Array | float | None
  ) -> tuple[own_patches.OwnPatches, jax.Array]:
    """As `patch`, of logits [B, S, n, V] of the head."""
    c = self.config
    # Its bytes are in the order of the text: the last but one is the byte before.
    deciding = heads[:, :, -2 if c.is_late else 0]
    entropies = jax.lax.stop_gradient(losses.entropy_nats(deciding))
    fires = entropies > (c.threshold if threshold is None else threshold)
    return own_patches.find(tokens, fires, c.patch_slots(tokens.shape[1]), c.is_late), entropies

  def start_scalars(self) -> Scalars:
    """What moves while training: float32 [], named as arguments and as fields of the config."""
    return {"threshold": jnp.float32(self.config.threshold)}

  def move_scalars(self, scalars: Scalars, metrics: Scalars, remaining: jax.Array) -> Scalars:
    """The scalars of the next step.

    Where too many bytes start patches the threshold rises, and falls where too few do.

    Args:
      scalars: of this step.
      metrics: of this step, sums.
      remaining: float32 [], the share of the training that is left.
    """
    c = self.config
    excess = c.patch_size * metrics["boundaries"] / jnp.maximum(metrics["inputs"], 1) - 1
    step = c.threshold_rate * remaining * jnp.clip(excess, -1, 1)
    return {"threshold": scalars["threshold"] + step}
