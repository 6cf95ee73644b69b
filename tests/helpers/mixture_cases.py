"""A BLT of several resolutions: its patches, and its compiled forward pass."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from forward import TINY, entropies_of, stack
from uncached import random_params

from blt_jax import patching
from blt_jax.models.config import ByteLMConfig
from blt_jax.models.mixture import MixtureBLT, MixtureConfig
from blt_jax.patching import PatchingConfig

SEQ_LEN = 24  # bytes of a row, and rows, so that one compiled program serves all
_BLT = {field.name: getattr(TINY, field.name) for field in dataclasses.fields(TINY)}
_BLT |= {  # unrolled layers compile faster
  name: dataclasses.replace(_BLT[name], unroll=True)
  for name in ("encoder", "latent", "decoder")
}
CONFIGS = {
  "two": MixtureConfig(**_BLT),
  "three": MixtureConfig(
    **_BLT, patch_sizes=(2.0, 4.0, 8.0), finer_attention=True, read_finer=True
  ),
}
RULES = {
  "two": PatchingConfig(threshold=2.95, coarser=(3.1,), max_patch_length=5),
  "three": PatchingConfig(threshold=2.5, coarser=(2.8, 3.1), max_patch_length=7),
}
ENTROPY = ByteLMConfig(stack(16, 1, window=5, unroll=True))


@functools.cache
def params(name: str) -> Any:
  """Random parameters."""
  return random_params(CONFIGS[name])


@functools.cache
def entropy_params() -> Any:
  """Random parameters of the entropy model, sharpened so that entropies vary."""
  found = random_params(ENTROPY)
  found["output"]["kernel"] *= 3
  return found


def lengths(name: str, ids: np.ndarray) -> np.ndarray:
  """Patch lengths [R, B, S + 1] of ids [B, S]."""
  entropies = np.asarray(entropies_of(ENTROPY, entropy_params(), ids))
  found = patching.nested_lengths(ids, RULES[name], entropies)
  return np.pad(found, ((0, 0), (0, 0), (0, ids.shape[1] + 1 - found.shape[2])))


def run(name: str, ids: np.ndarray, position: int = 0) -> tuple[Any, Any]:
  """Logits [S, S, V] of ids [S, S], and the gradient of some at a position of row 0.

  It is with respect to the embeddings [S, S, D] of bytes and n-grams, which stand as they are
  for patches that are made of the ids.
  """
  return forward(name, ids, lengths(name, ids), position)


def forward(
  name: str, ids: np.ndarray, lengths: np.ndarray, position: int = 0
) -> tuple[Any, Any]:
  """As `run`, of patch lengths [R, S, S + 1]."""
  return _compiled(name)(params(name), ids, lengths, position)


@functools.cache
def _compiled(name):
  model = MixtureBLT(CONFIGS[name])

  def mixture(embeddings, params, ids, lengths, position):
    given = ids, embeddings, lengths
    logits, _ = model.apply({"params": params}, *given, method="forward_embeddings")
    return (logits[0, position] * jnp.cos(jnp.arange(260))).sum(), logits

  @jax.jit
  def compiled(params, ids, lengths, position):
    embeddings = model.apply({"params": params}, ids, method="embed")
    gradient = jax.value_and_grad(mixture, has_aux=True)
    (_, logits), found = gradient(embeddings, params, ids, lengths, position)
    return logits, found[0]

  return compiled
