"""A model ready to read and to write: what decodes it, and its weights."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from blt_jax.decode import entropy_states, own_entropies
from blt_jax.decode.blt import BLTReader
from blt_jax.decode.boundary_head import HeadReader
from blt_jax.decode.byte_lm import ByteLMReader, EntropyModel
from blt_jax.decode.cursor import check_causal
from blt_jax.decode.from_params import blt_weights, byte_lm_weights
from blt_jax.decode.piece_text import Pieces
from blt_jax.decode.reader import EntropySource, Reader, UncachedReader
from blt_jax.decode.weights import BLTWeights
from blt_jax.hashing import NgramTable
from blt_jax.models.blt import BLT
from blt_jax.models.boundary_head import check as check_head
from blt_jax.models.byte_lm import ByteLM
from blt_jax.models.config import BLTConfig, ByteLMConfig
from blt_jax.patching import PatchingConfig


@dataclasses.dataclass(frozen=True)
class LanguageModel:
  """A reader, its weights and, where its ids are not bytes, what pieces they stand for."""

  reader: Reader
  weights: Any
  pieces: Pieces | None = None


def from_module(module: nn.Module, params: Any) -> LanguageModel:
  """Any model, without caches: slow and exact; see `UncachedReader`.

  Args:
    module: causal; called with int tokens [B, S] alone, it gives logits [B, S, V]. S is
      the most bytes that a row may have, a multiple of 128.
    params: its parameters.
  """
  tokens = jax.ShapeDtypeStruct((1, 128), jnp.int32)
  logits = jax.eval_shape(module.apply, {"params": params}, tokens)
  return LanguageModel(UncachedReader(module, logits.shape[2]), params)


def from_byte_lm(model: ByteLM, params: Any) -> LanguageModel:
  """A byte language model that is generated from directly.

  Args:
    model: the module.
    params: its parameters, sharded or not; the weights follow them.
  """
  config = model.config
  weights = jax.jit(lambda p: byte_lm_weights(config, p, config.dtype))(params)
  return LanguageModel(ByteLMReader(config, config.dtype), weights)


def from_blt(
  model: BLT,
  params: Any,
  patching: PatchingConfig,
  entropy_model: tuple[ByteLMConfig, Any] | None = None,
  *,
  source: tuple[EntropySource, Any] | None = None,
  lookup_table: Any = None,
  ngram_tables: Sequence[NgramTable] = (),
  max_patches: int | None = None,
  dtype: str | None = None,
  patched_by: str = "source",
) -> LanguageModel:
  """A BLT that patches what it reads and writes.

  Args:
    model: the module.
    params: its parameters, sharded or not; the weights follow them.
    patching: how to patch; the rule must look at a byte's prefix only.
    entropy_model: config and parameters of a byte language model, for the entropy scheme.
    source: what gives entropies instead, and its weights.
    lookup_table: bool [V, V], for the "lookup" scheme.
    ngram_tables: the model's frequency n-gram tables.
    max_patches: room for this many patches in a row; by default one for each byte.
    dtype: of weights, activations and caches; by default that of each model.
    patched_by: what says where patches end: "source", what the rule reads; "own", its own
      entropies in their place; or "head", its boundary head: then of the rule,
      `max_patch_length` and `threshold` count, which is in log odds: 0.0 as a rule.

  Raises:
    ValueError: the rule looks ahead, or lacks what it needs.
  """
  # --- What the rule needs
  check_causal(patching)
  _check_source(model.config, patching, patched_by, bool(entropy_model or source))
  if patching.scheme == "lookup" and lookup_table is None:
    raise ValueError("The lookup scheme needs a lookup_table, bool [V, V].")
  if source is None and entropy_model is not None:
    config, entropy_params = entropy_model
    byte_lm = ByteLMReader(config, dtype or config.dtype, patching.reset_at_newline)
    weigh = jax.jit(lambda p: byte_lm_weights(config, p, byte_lm.dtype))
    source = EntropyModel(byte_lm), weigh(entropy_params)

  # --- Weights, and a reader with what goes beside them
  dtype = dtype or model.config.dtype
  weights = jax.jit(lambda p: blt_weights(model.config, p, dtype))(params)
  make = _choose_reader(model.config, source, patching, patched_by)
  reader = make(model.config, patching, dtype, max_patches=max_patches)
  if source is not None and patching.scheme == "entropy":
    reader = dataclasses.replace(reader, source=source[0])
    weights = dataclasses.replace(weights, source=source[1])
  weights = with_ngrams(model.config, weights, ngram_tables)
  if lookup_table is not None:
    weights = dataclasses.replace(weights, lookup_table=jnp.asarray(lookup_table))
  return LanguageModel(reader, weights)


def with_ngrams(
  config: BLTConfig, weights: BLTWeights, tables: Sequence[NgramTable]
) -> BLTWeights:
  """Weights that find frequent n-grams in the tables of the model.

  Raises:
    ValueError: tables of other sizes than the model has, or none where it has some.
  """
  rows = tuple(table.size for table in tables)
  if rows != config.ngram_vocab_sizes:
    raise ValueError(
      f"The model has frequency n-gram tables of {config.ngram_vocab_sizes} rows; pass "
      f"them as ngram_tables, got {rows}."
    )
  keys = [jax.tree.map(jnp.asarray, table.keys) for table in tables]
  return dataclasses.replace(weights, ngram_keys=keys)


def _check_source(
  config: BLTConfig, patching: PatchingConfig, patched_by: str, has_source: bool
) -> None:
  """Raises ValueError where nothing says where patches end."""
  if patched_by == "head":
    check_head(config)
    if patching.threshold is None:
      raise ValueError("A boundary head needs a threshold of log odds: 0.0 as a rule.")
  elif patched_by == "own":
    own_entropies.check(patching)
  elif patching.scheme == "entropy" and not has_source:
    raise ValueError(
      "Entropy patching needs the entropy model: pass entropy_model=(config, params), or "
      "an entropy source."
    )


def _choose_reader(
  config: BLTConfig,
  source: tuple[EntropySource, Any] | None,
  patching: PatchingConfig,
  patched_by: str,
) -> type[BLTReader]:
  """The class that reads as a model of these settings does."""
  if config.entropy_state_dim:
    entropy_states.check(config, source and source[0], patching)
  if patched_by != "source":
    return {"head": HeadReader, "own": own_entropies.OwnReader}[patched_by]
  return entropy_states.EntropyStatesReader if config.entropy_state_dim else BLTReader
