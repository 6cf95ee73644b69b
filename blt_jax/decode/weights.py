"""What decoding reads of a model: few, large matrices, with a shape and axes beside each.

Matrices are [out, in], so that each result reads one row, and lie in the dtype of decoding;
norms are float32. Rows of queries and keys are ordered so that RoPE rotates the two halves
of a head. Axes are logical names of `sharding.RULES`.
"""

import dataclasses
from typing import Any

import jax


def axes(*names: str | None, **options: Any) -> Any:
  """A field for an array whose dimensions have these logical names."""
  return dataclasses.field(metadata={"axes": names}, **options)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlockWeights:
  """A block: attention(norm(x)), then a gated MLP of norm(x)."""

  attention_norm: jax.Array = axes("norm")  # [D]
  query_key_value: jax.Array = axes("heads", "embed")  # [(N + 2 G) H, D]
  output: jax.Array = axes("embed", "heads")  # [D, N H]
  mlp_norm: jax.Array = axes("norm")  # [D]
  gate_up: jax.Array = axes("mlp", "embed")  # [2 F, D]
  down: jax.Array = axes("embed", "mlp")  # [D, F]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CrossWeights:
  """A cross-attention, of patches to bytes or of bytes to the vectors of patches."""

  query_norm: jax.Array = axes("norm")  # [D]
  context_norm: jax.Array = axes("norm")  # [D]
  query: jax.Array = axes("heads", "embed")  # [N H, D]
  key_value: jax.Array = axes("heads", "embed")  # [2 G H, D]
  output: jax.Array = axes("embed", "heads")  # [D, N H]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EncoderWeights:
  """The local encoder; without cross-attention, patches are pooled bytes as they are."""

  layers: list[BlockWeights]
  cross: list[CrossWeights]  # one under each of the last layers, or none
  # [K D, D times the number of poolings]
  patch_projection: jax.Array | None = axes("heads", "embed", default=None)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecoderWeights:
  """The local decoder; without cross-attention, bytes add the vector of their patch."""

  layers: list[BlockWeights]
  cross: list[CrossWeights]  # one before each of the first layers, or none
  norm: jax.Array = axes("norm")  # [D]
  # [slots D, latent width], slots being the vectors that bytes read of a patch
  patch_projection: jax.Array | None = axes("heads", "embed", default=None)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ByteLMWeights:
  """A byte language model."""

  layers: list[BlockWeights]
  embedding: jax.Array = axes("vocab", "embed")  # [V, D]
  norm: jax.Array = axes("norm")  # [D]
  output: jax.Array = axes("vocab", "embed")  # [V, D]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BLTWeights:
  """A BLT, and what its patching rule needs."""

  encoder: EncoderWeights
  latent: list[BlockWeights]
  decoder: DecoderWeights
  embedding: jax.Array = axes("vocab", "embed")  # [V, D]
  output: jax.Array = axes("vocab", "embed")  # [V, D]
  # [functions times sizes times rows of a table, D], one table after the other
  hashes: jax.Array | None = axes("hash_rows", "embed", default=None)
  # [latent width, K D]
  latent_projection: jax.Array | None = axes("embed", "heads", default=None)
  # of each frequency table its embeddings, [rows, D], and what finds its n-grams
  ngrams: list[jax.Array] = dataclasses.field(default_factory=list)
  ngram_keys: list[Any] = dataclasses.field(default_factory=list)
  source: Any = None  # weights of the entropy source
  # [D, d], of the states of an entropy model
  states_to_encoder: jax.Array | None = axes("embed", "heads", default=None)
  # of a boundary head: gain [D] and row [1, D], float32, and bias []
  boundary_head: tuple[jax.Array, jax.Array, jax.Array] | None = None
  states_to_decoder: jax.Array | None = axes("embed", "heads", default=None)
  lookup_table: jax.Array | None = axes("vocab", "vocab", default=None)  # bool [V, V]
