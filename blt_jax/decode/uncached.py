"""Generation that runs the whole model for every byte, compiled once per buffer length.

Simple and exact: each byte comes from the full forward pass over what precedes it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from blt_jax import patching, tokenizer
from blt_jax.models.blt import BLT
from blt_jax.models.byte_lm import ByteLM
from blt_jax.ops import losses

Predict = Callable[[jax.Array], jax.Array]  # ids [1, S] -> logits [1, S, V]


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How a byte is drawn.

  Attributes:
    temperature: 0 takes the likeliest byte; 1 samples from the model's distribution.
    top_p: samples among the likeliest bytes that together have this probability.
    seed: of the draws.
  """

  temperature: float = 0.0
  top_p: float = 1.0
  seed: int = 0

  def __post_init__(self):
    if self.temperature < 0 or not 0 < self.top_p <= 1:
      raise ValueError(
        f"temperature must be >= 0 and top_p in (0, 1], got {self.temperature} and "
        f"{self.top_p}."
      )


def byte_lm_predictor(model: ByteLM, params: Any) -> Predict:
  """Logits of a byte language model."""
  return lambda tokens: model.apply({"params": params}, tokens)


def blt_predictor(
  model: BLT, params: Any, config: patching.PatchingConfig, entropy: Predict | None = None
) -> Predict:
  """Logits of a BLT that patches its own input.

  Args:
    model: the module.
    params: its parameters.
    config: how to patch.
    entropy: logits of the entropy model, for the entropy scheme.

  Raises:
    ValueError: the patching looks at later bytes, or lacks its entropy model.
  """
  if config.is_top_k:
    raise ValueError("Top-k patching needs the whole text; generate with a threshold.")
  if config.scheme == "entropy" and entropy is None:
    raise ValueError("Entropy patching needs the entropy model.")

  def predict(tokens):
    entropies = None if entropy is None else losses.entropy_nats(entropy(tokens))
    lengths = patching.patch_lengths(tokens, config, entropies)
    return model.apply({"params": params}, tokens, lengths)

  return predict


def generate(
  predict: Predict, prompt: np.ndarray, max_bytes: int, sampling: Sampling
) -> np.ndarray:
  """Continues a prompt until EOS or `max_bytes`.

  Args:
    predict: logits of the model; position t must not depend on later ids.
    prompt: int [n] ids, at least one.
    max_bytes: how many ids to add at most.
    sampling: how to draw them.

  Returns:
    int32 [m] new ids, an EOS included.

  Raises:
    ValueError: the prompt is empty.
  """
  if len(prompt) == 0:
    raise ValueError("The prompt is empty; begin with BOS (tokenizer.encode adds it).")
  # Lengths are rounded up, so that prompts of similar length share one program. The
  # spare byte keeps the last one from looking like the end of a row.
  length = -(-(len(prompt) + max_bytes + 1) // 128) * 128
  buffer = np.zeros((1, length), np.int32)
  buffer[0, : len(prompt)] = prompt
  run = _compiled(predict, sampling.temperature, sampling.top_p)
  buffer, end = run(
    jnp.asarray(buffer), len(prompt), len(prompt) + max_bytes, jax.random.key(sampling.seed)
  )
  return np.asarray(buffer)[0, len(prompt) : int(end)]


@functools.lru_cache(maxsize=8)
def _compiled(predict, temperature, top_p):
  def body(state):
    buffer, position, rng, _ = state
    logits = jax.lax.dynamic_index_in_dim(predict(buffer), position - 1, 1)[0, 0]
    rng, key = jax.random.split(rng)
    token = _draw(key, logits, temperature, top_p)
    buffer = jax.lax.dynamic_update_index_in_dim(buffer, token[None, None], position, 1)
    return buffer, position + 1, rng, token == tokenizer.EOS_ID

  @jax.jit
  def run(buffer, start, stop, rng):
    state = (buffer, start, rng, jnp.asarray(False))
    state = jax.lax.while_loop(lambda s: (s[1] < stop) & ~s[3], body, state)
    return state[0], state[1]

  return run


def _draw(key, logits, temperature, top_p):
  """One id from logits [V]."""
  if temperature == 0:
    return jnp.argmax(logits).astype(jnp.int32)
  logits = logits / temperature
  order = jnp.argsort(-logits)
  before = jnp.cumsum(jax.nn.softmax(logits[order])) - jax.nn.softmax(logits[order])
  kept = jnp.where(before < top_p, logits[order], -jnp.inf)
  return order[jax.random.categorical(key, kept)].astype(jnp.int32)
