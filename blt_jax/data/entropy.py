"""Entropies of documents by an entropy model, on the CPU backend."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from blt_jax.models.byte_lm import ByteLM
from blt_jax.models.config import ByteLMConfig
from blt_jax.ops import losses


class EntropyScorer:
  """Gives the entropy after each byte of a document.

  A document is scored in chunks that overlap by all that the model can see, so the
  entropies are those of the whole document read from its start, whatever its length, and
  those of a prefix do not depend on what follows.
  """

  def __init__(self, config: ByteLMConfig, params: Any, chunk_length: int = 2048):
    """Takes a model with a window, its parameters, and the bytes scored in one go.

    Raises:
      ValueError: the model has no window, so chunks cannot overlap by all it sees.
    """
    window = config.transformer.window
    if window is None:
      raise ValueError("Scoring documents needs an entropy model with an attention window.")
    self._overlap = config.transformer.num_layers * (window - 1)
    self._length = max(chunk_length, 2 * self._overlap)
    self._cpu = jax.local_devices(backend="cpu")[0]
    self._params = jax.device_put(params, self._cpu)
    self._score = jax.jit(functools.partial(_score, ByteLM(config)))

  def __call__(self, tokens: np.ndarray) -> np.ndarray:
    """Entropies in nats, float32 [n], of the predictions made at ids [n]."""
    step = self._length - self._overlap
    scores = np.empty(len(tokens), np.float32)
    for start in range(0, max(len(tokens) - self._overlap, 1), step):
      chunk = tokens[start : start + self._length]
      padded = np.pad(chunk, (0, self._length - len(chunk)))[None]
      with jax.default_device(self._cpu):
        chunk_scores = np.asarray(self._score(self._params, jnp.asarray(padded)))[0]
      first = self._overlap if start else 0
      scores[start + first : start + len(chunk)] = chunk_scores[first : len(chunk)]
    return scores


def _score(model, params, tokens):
  return losses.entropy_nats(model.apply({"params": params}, tokens))
