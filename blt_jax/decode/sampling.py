"""How bytes are drawn: settings of a prompt, and the draw itself."""

import dataclasses
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from blt_jax import tokenizer
from blt_jax.decode import utf8

ALL_PARTS = frozenset(("seen", "utf8", "temperature", "filters"))
_RULES: dict[str, tuple[type, Callable[[Any], bool], str]] = {
  "max_bytes": (numbers.Integral, lambda x: x >= 1, "an integer >= 1"),
  "temperature": (numbers.Real, lambda x: 0 <= x <= 1e6, "a number in [0, 1e6]"),
  "top_k": (numbers.Integral, lambda x: 0 <= x < 2**31, "an integer >= 0 (0 for all)"),
  "top_p": (numbers.Real, lambda x: 0 < x <= 1, "a number in (0, 1]"),
  "min_p": (numbers.Real, lambda x: 0 <= x < 1, "a number in [0, 1)"),
  "repetition_penalty": (numbers.Real, lambda x: 1e-6 <= x <= 1e6, "in [1e-6, 1e6] (1: none)"),
  "seed": (numbers.Integral, lambda x: 0 <= x < 2**32, "an integer in [0, 2**32)"),
  "valid_utf8": (bool, lambda _: True, "true or false"),
}


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How a text is continued.

  Attributes:
    max_bytes: bytes to add at most.
    temperature: 0 takes the likeliest byte; 1 samples from the model's distribution.
    top_k: draw among this many likeliest bytes; 0 for all.
    top_p: draw among the likeliest bytes that together have this probability.
    min_p: draw among bytes at least this share as likely as the likeliest.
    repetition_penalty: divides positive logits of bytes that occurred, multiplies
      negative ones; 1 for none.
    seed: of the draws; they depend on it and on nothing else but the text.
    stop: texts that end the continuation; they are cut off.
    valid_utf8: never a byte that cannot go on well-formed UTF-8, nor one that begins a
      character which `max_bytes` would cut.
  """

  max_bytes: int = 200
  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  repetition_penalty: float = 1.0
  seed: int = 0
  stop: Sequence[str | bytes] = ()
  valid_utf8: bool = False

  def __post_init__(self):
    for name, (kind, is_right, rule) in _RULES.items():
      value = getattr(self, name)
      is_kind = isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
      if not is_kind or not is_right(value):
        raise ValueError(f"{name} is {value!r}; it must be {rule}.")
    filters = [
      name for name, off in (("top_k", 0), ("top_p", 1), ("min_p", 0))
      if getattr(self, name) != off
    ]  # fmt: skip
    if self.temperature == 0 and filters:
      raise ValueError(
        f"temperature 0 takes the likeliest byte, so {', '.join(filters)} would do nothing; "
        "set a temperature, or leave them out."
      )
    object.__setattr__(self, "stop", _stop_texts(self.stop))

  @property
  def parts(self) -> frozenset[str]:
    """What `draw` must do; nothing where the likeliest byte is taken."""
    needed = {
      "seen": self.repetition_penalty != 1,
      "utf8": self.valid_utf8,
      "temperature": self.temperature > 0,
      "filters": self.top_k > 0 or self.top_p < 1 or self.min_p > 0,
    }
    return frozenset(part for part, is_needed in needed.items() if is_needed)


def _stop_texts(stop):
  texts = (stop,) if isinstance(stop, str | bytes) else stop
  if not isinstance(texts, Sequence) or not all(isinstance(t, str | bytes) for t in texts):
    raise ValueError(f"stop is {stop!r}; it must be a text or a list of texts.")
  for text in texts:
    if not text or (isinstance(text, str) and not tokenizer.is_text(text)):
      flaw = "has a lone surrogate" if text else "is empty"
      raise ValueError(f"The stop string {text!r} {flaw}, so it would never be met.")
  return tuple(texts)


def stop_ids(text: str | bytes) -> np.ndarray:
  """Ids int32 [n] of a stop string."""
  return tokenizer.encode(text, add_bos=False, add_eos=False)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Options:
  """`Sampling` of each row, as arrays."""

  temperature: jax.Array  # float32 [B]
  top_k: jax.Array  # int32 [B]
  top_p: jax.Array  # float32 [B]
  min_p: jax.Array  # float32 [B]
  repetition_penalty: jax.Array  # float32 [B]
  seed: jax.Array  # uint32 [B]
  valid_utf8: jax.Array  # bool [B]
  stop: jax.Array  # int32 [B, stops, length], -1 on the left of short ones and in unused


def make_options(samplings: Sequence[Sampling], num_stops: int, stop_length: int) -> Options:
  """Arrays from one `Sampling` a row, with room for stop strings."""

  def column(name, dtype):
    return jnp.asarray([getattr(s, name) for s in samplings], dtype)

  stop = np.full((len(samplings), num_stops, stop_length), -1, np.int32)
  for row, sampling in zip(stop, samplings, strict=True):
    for slot, text in zip(row, sampling.stop, strict=False):
      ids = stop_ids(text)
      slot[stop_length - len(ids) :] = ids
  return Options(
    column("temperature", jnp.float32),
    column("top_k", jnp.int32),
    column("top_p", jnp.float32),
    column("min_p", jnp.float32),
    column("repetition_penalty", jnp.float32),
    column("seed", jnp.uint32),
    column("valid_utf8", jnp.bool_),
    jnp.asarray(stop),
  )


def draw(
  logits: jax.Array,
  index: jax.Array,
  room: jax.Array,
  options: Options,
  state: jax.Array,
  seen: jax.Array,
  parts: frozenset[str] = ALL_PARTS,
) -> jax.Array:
  """Draws a byte from each distribution.

  The noise depends on the row's seed and the byte's index alone, so that a byte comes
  out the same whether it is drawn on its own, in a batch, or to verify a draft.

  Args:
    logits: float32 [B, C, V].
    index: int [B, C], of each byte in its row.
    room: int [B, C], bytes that the row may still have, this one included.
    options: of each row.
    state: int [B, C], of `utf8` before each byte.
    seen: bool [B, C, V], which bytes occurred before each.
    parts: all that any row needs, see `Sampling.parts`; more change nothing.

  Returns:
    int32 [B, C].
  """
  logits = adjust(logits, room, options, state, seen, parts)
  if "temperature" not in parts:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
  noise = jax.vmap(jax.vmap(_noise, (None, 0, None)), (0, 0, None))(
    options.seed, index, logits.shape[-1]
  )
  drawn = jnp.argmax(logits + noise, axis=-1)
  is_greedy = options.temperature[:, None] == 0
  return jnp.where(is_greedy, jnp.argmax(logits, axis=-1), drawn).astype(jnp.int32)


def _noise(seed, index, size):
  """Gumbel noise [size]: the largest of logits plus noise is a draw from their softmax."""
  key = jax.random.fold_in(jax.random.key(seed), index)
  return jax.random.gumbel(key, (size,), jnp.float32)


def adjust(
  logits: jax.Array,
  room: jax.Array,
  options: Options,
  state: jax.Array,
  seen: jax.Array,
  parts: frozenset[str] = ALL_PARTS,
) -> jax.Array:
  """The logits that are sampled from: penalised, scaled, -inf where ruled out."""
  if "seen" in parts:
    penalty = options.repetition_penalty[:, None, None]
    penalised = jnp.where(logits > 0, logits / penalty, logits * penalty)
    logits = jnp.where(seen, penalised, logits)
  if "utf8" in parts:
    ruled_out = options.valid_utf8[:, None, None] & ~utf8.allowed(state, room)
    logits = jnp.where(ruled_out, -jnp.inf, logits)
  if "temperature" in parts:
    temperature = options.temperature[:, None, None]
    logits = logits / jnp.where(temperature > 0, temperature, 1)
  return _filter(logits, options) if "filters" in parts else logits


def _filter(logits, options):
  order = jnp.argsort(-logits, axis=-1)
  ranked = jnp.take_along_axis(logits, order, axis=-1)
  kept = _kept(ranked, options)
  kept = jnp.take_along_axis(kept, jnp.argsort(order, axis=-1), axis=-1)
  return jnp.where(kept, logits, -jnp.inf)


def _kept(ranked, options):
  """Which of logits [B, C, V], largest first, may be drawn; top_k, then top_p, then min_p."""
  rank = np.arange(ranked.shape[-1])
  top_k, top_p, min_p = (
    x[:, None, None] for x in (options.top_k, options.top_p, options.min_p)
  )
  kept = (rank < top_k) | (top_k == 0)
  probabilities = jax.nn.softmax(jnp.where(kept, ranked, -jnp.inf), axis=-1)
  before = jnp.cumsum(probabilities, axis=-1) - probabilities
  kept &= (before < top_p) | (top_p >= 1)
  kept &= probabilities >= min_p * probabilities[..., :1]
  return kept | (rank == 0)
