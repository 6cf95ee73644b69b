"""Sizes and options of the models."""

import dataclasses
from typing import Any, Literal, get_args

from blt_jax import tokenizer
from blt_jax.ops import rope

Remat = Literal["none", "full", "attention", "projections", "matmuls", "dots"]
DepthInit = Literal["disabled", "current_depth", "global_depth", "dim_ratio"]


class Derived(int):
  """A size that follows from other fields; `dataclasses.replace` lets it follow anew."""


def _derive(config: Any, name: str, size: int) -> None:
  """Sets a size that is not given: None and 0 mean that too, in settings new and old."""
  given = getattr(config, name)
  if not given or isinstance(given, Derived):
    object.__setattr__(config, name, Derived(size))


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
  """A stack of pre-norm blocks: RMSNorm, attention with RoPE, SwiGLU.

  Attributes:
    dim: D, width.
    num_layers: L.
    num_heads: N.
    num_kv_heads: G, which divides N; by default N.
    head_dim: H; by default `dim // num_heads`.
    mlp_dim: F; by default two thirds of 4 D times `mlp_multiplier`, rounded up to
      `mlp_multiple_of`.
    mlp_multiplier: see `mlp_dim`.
    mlp_multiple_of: see `mlp_dim`.
    window: positions that attention sees, its own included; None for all.
    norm_epsilon: of every RMSNorm.
    rope_theta: base of the rotary wavelengths.
    rope_scaling: slower rotations for longer contexts, as in Llama 3.1 and later.
    init_std: standard deviation of all block matrices; by default fan_in ** -0.5
      divided by the factor of `depth_init`.
    depth_init: "disabled" 1, "current_depth" sqrt(2 (l + 1)), "global_depth"
      sqrt(2 (L + 1)), "dim_ratio" D / 4096.
    remat: what the backward pass recomputes, from "full" (everything) by "attention",
      "projections" and "matmuls" (no product with weights, nor attention) to "none";
      each saves more than the one before, see `transformer.recomputed`. "dots" saves
      all products with weights and nothing else. On CPUs "none" is "matmuls" where
      layers are written out.
    unroll: write the layers out instead of looping over them: faster on GPU and CPU,
      slower to compile.
  """

  dim: int
  num_layers: int
  num_heads: int
  num_kv_heads: int = Derived()
  head_dim: int = Derived()
  mlp_dim: int = Derived()
  mlp_multiplier: float = 1.0
  mlp_multiple_of: int = 256
  window: int | None = None
  norm_epsilon: float = 1e-5
  rope_theta: float = 10_000.0
  rope_scaling: rope.Scaling = rope.Scaling()
  init_std: float | None = None
  depth_init: DepthInit = "disabled"
  remat: Remat = "none"
  unroll: bool = False

  def __post_init__(self):
    _derive(self, "num_kv_heads", self.num_heads)
    _derive(self, "head_dim", self.dim // self.num_heads)
    _derive(self, "mlp_dim", self._default_mlp_dim())
    if self.mlp_dim < 1:
      raise ValueError(
        f"mlp_multiplier {self.mlp_multiplier} makes an MLP of no width; make it larger."
      )
    heads, kv_heads = self.num_heads, self.num_kv_heads
    if isinstance(self.head_dim, Derived) and self.dim % heads:
      raise ValueError(f"dim {self.dim} must be a multiple of num_heads {heads}.")
    if self.head_dim % 2:
      raise ValueError(f"head_dim {self.head_dim} must be even, RoPE rotates pairs.")
    if heads % kv_heads:
      raise ValueError(f"num_heads {heads} must be a multiple of num_kv_heads {kv_heads}.")
    if self.window is not None and self.window < 1:
      raise ValueError(f"window is {self.window}; it must be >= 1, or None for all.")
    if self.remat not in get_args(Remat):
      raise ValueError(f"Unknown remat {self.remat!r}; choose one of {get_args(Remat)}.")
    if self.depth_init not in get_args(DepthInit):
      raise ValueError(
        f"Unknown depth_init {self.depth_init!r}; choose one of {get_args(DepthInit)}."
      )

  def _default_mlp_dim(self) -> int:
    width = int(self.mlp_multiplier * int(8 * self.dim / 3))
    return -(-width // self.mlp_multiple_of) * self.mlp_multiple_of


@dataclasses.dataclass(frozen=True)
class ByteLMConfig:
  """A plain decoder-only language model: entropy model, byte or BPE baseline.

  Attributes:
    transformer: the stack.
    vocab_size: V.
    document_masks: attention stays inside documents.
    eos_id: the id that ends a document.
    tie_embeddings: the output matrix is the embedding table.
    dtype: of activations; parameters are float32.
  """

  transformer: TransformerConfig
  vocab_size: int = tokenizer.VOCAB_SIZE
  document_masks: bool = True
  eos_id: int = tokenizer.EOS_ID
  tie_embeddings: bool = False
  dtype: str = "float32"


@dataclasses.dataclass(frozen=True)
class BPELMConfig(ByteLMConfig):
  """A decoder-only language model over the pieces of a BPE tokenizer, as Llama is one.

  Attributes:
    transformer: the stack.
    vocab_size: V, as many as the tokenizer has; see `data.piece_vocabulary`.
    document_masks: attention stays inside documents.
    eos_id: the id that ends a document.
    tie_embeddings: the output matrix is the embedding table.
    dtype: of activations; parameters are float32.
  """

  vocab_size: int = 8192


@dataclasses.dataclass(frozen=True)
class CrossAttentionConfig:
  """Attention between bytes and patches in a local model.

  Attributes:
    num_heads: N; a head has width // N features of the local model's width.
    num_kv_heads: G, which divides N; by default N.
    all_layers: at every layer; else after the last one (encoder) or before the first
      (decoder).
    window: patches visible, a byte's own included; None is 1.
  """

  num_heads: int
  num_kv_heads: int = Derived()
  all_layers: bool = False
  window: int | None = None

  def __post_init__(self):
    _derive(self, "num_kv_heads", self.num_heads)
    if self.window is not None and self.window < 1:
      raise ValueError(f"Cross-attention window is {self.window}; it must be >= 1, or None.")
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f"Cross-attention num_heads {self.num_heads} must be a multiple of num_kv_heads "
        f"{self.num_kv_heads}."
      )


@dataclasses.dataclass(frozen=True)
class BLTConfig:
  """A Byte Latent Transformer. Defaults are those of Meta's code.

  Attributes:
    encoder: the local encoder, over bytes.
    latent: the latent transformer, over patches.
    decoder: the local decoder, over bytes; as wide as the encoder.
    encoder_cross: cross-attention into patches; None pools bytes into patches instead.
    decoder_cross: cross-attention out of patches; None adds the patch to its bytes.
    vectors_per_patch: K, vectors of encoder width that stand for a patch.
    pooling: "max", "avg", "min" or several joined by "_"; see `ops.patch_attention.pool`.
    repool: each encoder cross-attention starts from freshly pooled bytes (Hugging Face)
      instead of refining the patches of the one before (Meta).
    project_latent: a matrix takes latent outputs to the decoder's K vectors.
    hash_sizes: the n of the hashed n-grams; empty for none.
    hash_vocab_size: buckets per table.
    hash_functions: hash functions per size.
    pixel_ngrams: also hash two n-grams of a picture, see `hashing.pixel_hash_ids`; with
      `hash_sizes=()` they are all.
    picture_size: height, width and channels of the pictures that they are of; rows begin with
      whole pictures.
    hash_rows_multiple_of: the tables together get rows that are never looked up, so that
      their number is a multiple of this: it must divide evenly over the devices of a slice.
    ngram_vocab_sizes: rows of each frequency n-gram table, `hashing.TABLE_OFFSET`
      included; the model then takes `ngram_ids`.
    vocab_size: V.
    document_masks: local attention stays inside documents.
    latent_document_masks: so does latent attention.
    hash_document_masks: hashed n-grams take bytes of other documents for 0, as those left
      of a row. False, as in the references, makes logits depend on what stands before.
    cross_document_masks: windows of cross-attention stay inside documents; the references'
      do not.
    entropy_state_dim: width of the entropy model's last states, which are added to the
      embeddings of bytes and to what the decoder reads of bytes, each through a matrix that is
      zero at first; the model then takes `entropy_states`. 0: they are not.
    boundary_weight: of a boundary head's cross entropy, beside that of the decoder: it learns
      on the encoder's byte states whether the next byte starts a patch, and may stand in for
      the entropy model afterwards. 0: there is none.
    boundary_gradient: the boundary head moves the encoder, too.
    tie_embeddings: the output matrix is the byte embedding table.
    dtype: of activations; parameters are float32.
  """

  encoder: TransformerConfig
  latent: TransformerConfig
  decoder: TransformerConfig
  encoder_cross: CrossAttentionConfig | None
  decoder_cross: CrossAttentionConfig | None
  vectors_per_patch: int = 2
  pooling: str = "max"
  repool: bool = False
  project_latent: bool = True
  hash_sizes: tuple[int, ...] = (3, 4, 5, 6, 7, 8)
  hash_vocab_size: int = 500_002
  hash_functions: int = 1
  pixel_ngrams: bool = False
  picture_size: tuple[int, ...] = ()
  hash_rows_multiple_of: int = 8192  # whole tiles of 8 rows on up to 1024 devices
  ngram_vocab_sizes: tuple[int, ...] = ()
  vocab_size: int = tokenizer.VOCAB_SIZE
  document_masks: bool = True
  latent_document_masks: bool = True
  hash_document_masks: bool = True
  cross_document_masks: bool = True
  entropy_state_dim: int = 0
  boundary_weight: float = 0.0
  boundary_gradient: bool = False
  tie_embeddings: bool = False
  dtype: str = "float32"

  def __post_init__(self):
    if self.encoder.dim != self.decoder.dim:
      raise ValueError(
        f"The decoder continues from the encoder's bytes: widths {self.encoder.dim} and "
        f"{self.decoder.dim} must be equal."
      )
    if self.hash_rows_multiple_of < 1:
      raise ValueError(
        f"hash_rows_multiple_of is {self.hash_rows_multiple_of}; it must be >= 1."
      )
    if len(self.picture_size) not in (0, 3) or min(self.picture_size, default=1) < 1:
      raise ValueError(
        f"picture_size is {self.picture_size}; it must be height, width and channels, each 1 "
        "or more."
      )
    if self.picture_size and not self.pixel_ngrams:
      raise ValueError("picture_size is of pixel_ngrams: set that too, or leave both out.")
    if self.entropy_state_dim < 0:
      raise ValueError(f"entropy_state_dim is {self.entropy_state_dim}; it must be >= 0.")
    if self.boundary_weight < 0:
      raise ValueError(f"boundary_weight is {self.boundary_weight}; it must be >= 0.")
    if self.boundary_gradient and not self.boundary_weight:
      raise ValueError("boundary_gradient is of a boundary head: set boundary_weight above 0.")
    if self.entropy_state_dim and self.boundary_weight:
      raise ValueError(
        "A boundary head stands in for an entropy model whose states the model needs: set "
        "entropy_state_dim or boundary_weight to 0."
      )
    pooling = set(self.pooling.split("_"))
    if not pooling <= {"avg", "mean", "min", "max"} or {"avg", "mean"} <= pooling:
      raise ValueError(f"pooling {self.pooling!r} must join some of avg, min, max by '_'.")
    if self.encoder_cross and len(pooling) > 1:
      raise ValueError(f"Cross-attention starts from one pooling, got {self.pooling!r}.")
    for name, cross in (("encoder", self.encoder_cross), ("decoder", self.decoder_cross)):
      if cross and cross.num_heads > self.encoder.dim:
        raise ValueError(
          f"{name}_cross.num_heads {cross.num_heads} must be at most the width "
          f"{self.encoder.dim}."
        )
    if not self.project_latent and self.latent.dim != self.decoder_slots * self.decoder.dim:
      raise ValueError(
        f"Without project_latent, latent.dim {self.latent.dim} must be "
        f"{self.decoder_slots} * decoder.dim {self.decoder.dim}."
      )

  @property
  def num_hash_tables(self) -> int:
    """One for each n-gram and hash function."""
    return self.hash_functions * (len(self.hash_sizes) + 2 * self.pixel_ngrams)

  @property
  def hash_rows(self) -> int:
    """Rows of all hash tables together."""
    multiple = self.hash_rows_multiple_of
    return -(-self.num_hash_tables * self.hash_vocab_size // multiple) * multiple

  @property
  def masks_cross_windows(self) -> bool:
    """Whether a cross-attention reads several patches, of one document alone."""
    crosses = (self.encoder_cross, self.decoder_cross)
    return self.cross_document_masks and any(x and (x.window or 1) > 1 for x in crosses)

  @property
  def decoder_slots(self) -> int:
    """Vectors per patch that the decoder reads."""
    return self.vectors_per_patch if self.decoder_cross else 1

  @property
  def patch_dim(self) -> int:
    """Width of what the encoder gives per patch."""
    if self.encoder_cross:
      return self.vectors_per_patch * self.encoder.dim
    return len(self.pooling.split("_")) * self.encoder.dim
