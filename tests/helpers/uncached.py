"""The full forward pass as the reference of everything that decodes with caches."""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from forward import entropies_of, logits_of, pad_lengths, stack
from golden_cases import FLOAT32

from blt_jax import kinds, patching, tokenizer
from blt_jax.data.transforms import LookUpNgrams
from blt_jax.decode.language_model import LanguageModel, from_blt
from blt_jax.hashing import NgramTable
from blt_jax.models import init
from blt_jax.models.blt import BLT
from blt_jax.models.config import BLTConfig, ByteLMConfig
from blt_jax.models.device_patches import measure
from blt_jax.patching import PatchingConfig

LENGTH = 64  # bytes of every text, so that one compiled program serves all


@dataclasses.dataclass(frozen=True)
class Uncached:
  """A BLT and its entropy model."""

  config: BLTConfig
  params: Any
  patching: PatchingConfig
  entropy_config: ByteLMConfig
  entropy_params: Any
  tables: tuple[NgramTable, ...] = ()

  def entropies(self, ids: np.ndarray) -> np.ndarray:
    """Entropies [B, n] at ids [B, n]."""
    tokens = np.pad(ids, ((0, 0), (0, LENGTH - ids.shape[1])))
    entropies = entropies_of(self.entropy_config, self.entropy_params, tokens)
    return np.asarray(entropies)[:, : ids.shape[1]]

  def lengths(self, ids: np.ndarray) -> np.ndarray:
    """Patch lengths [B, P] of ids [B, n], the next byte included."""
    return patching.patch_lengths(ids, self.patching, self.entropies(ids))

  def logits(self, ids: np.ndarray) -> np.ndarray:
    """Logits [B, n, V] at ids [B, n]."""
    lengths = pad_lengths(self.lengths(ids), LENGTH, LENGTH + 1)
    tokens = np.pad(ids, ((0, 0), (0, LENGTH - ids.shape[1])))
    look_up = LookUpNgrams(self.tables, self.config.hash_document_masks)
    ngram_ids = look_up({"tokens": tokens})["ngram_ids"] if self.tables else None
    states = None
    if self.config.entropy_state_dim:
      states = _states_of(self.entropy_config, self.entropy_params, tokens)
    logits = logits_of(self.config, self.params, tokens, lengths, ngram_ids, states)
    return np.asarray(logits)[:, : ids.shape[1]]

  def check(self, result, is_greedy: bool):
    """Compares a generated text with the logits of the whole of it in one pass."""
    ids = np.concatenate([result.prompt, result.ids])[None]
    assert ids.shape[1] < LENGTH
    start = len(result.prompt) - 1
    logits = self.logits(ids)[0, start:-1]
    if is_greedy:
      np.testing.assert_array_equal(result.ids, logits.argmax(axis=1))
    log_probs = np.asarray(jax.nn.log_softmax(logits))[np.arange(len(logits)), result.ids]
    chex.assert_trees_all_close(result.log_probs, log_probs, **FLOAT32)
    chex.assert_trees_all_close(result.entropies, self.entropies(ids)[0], **FLOAT32)
    lengths = self.lengths(ids)[0]
    starts = np.cumsum(lengths) - lengths
    np.testing.assert_array_equal(np.flatnonzero(result.starts), starts[starts < ids.shape[1]])

  def cached(self, **changes) -> LanguageModel:
    """The same with caches."""
    entropy_model = self.entropy_config, self.entropy_params
    changes |= {"ngram_tables": self.tables}
    return from_blt(BLT(self.config), self.params, self.patching, entropy_model, **changes)


@functools.partial(jax.jit, static_argnums=0)
def _states_of(config, params, tokens):
  return measure(config, params, tokens)[1]


@functools.cache
def random_blt(config: BLTConfig, threshold: float = 3.0, **rule) -> Uncached:
  """Random parameters, sharpened so that entropies and likeliest bytes vary."""
  entropy_config = ByteLMConfig(stack(16, 1, window=5))
  entropy_params = random_params(entropy_config)
  entropy_params["output"]["kernel"] *= 3
  params = random_params(config)
  rule = PatchingConfig(threshold=threshold, **rule)
  return Uncached(config, params, rule, entropy_config, entropy_params)


def random_params(config: BLTConfig | ByteLMConfig) -> Any:
  """Parameters drawn with numpy, which has nothing to compile."""
  rng = np.random.default_rng(0)

  def draw(path, shape):
    is_norm = "scale" in str(path[-1])
    spread = 0.1 if is_norm else (1, *shape.shape)[-2] ** -0.5
    return jnp.asarray(is_norm + spread * rng.standard_normal(shape.shape), shape.dtype)

  shapes = init.abstract_params(kinds.build_model(config))
  return jax.tree_util.tree_map_with_path(draw, shapes)


def random_text(rng: np.random.Generator, rows: int, length: int) -> np.ndarray:
  """Ids [rows, length], some of them ends of documents."""
  ids = rng.integers(0, tokenizer.VOCAB_SIZE, (rows, length)).astype(np.int32)
  ids[rng.random(ids.shape) < 0.1] = tokenizer.EOS_ID
  ids[:, 0] = tokenizer.BOS_ID
  return ids
