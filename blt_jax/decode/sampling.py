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

_COLDEST = 1e-30  # temperatures below overflow float32 logits: the likeliest byte it is
ALL_PARTS = frozenset(("seen", "utf8", "eos", "temperature", "filters"))


def _option(
  default: Any,
  kind: type,
  is_right: Callable[[Any], bool],
  rule: str,
  meaning: str,
  dtype: str | None = None,
) -> Any:
  """A field of `Sampling`.

  Args:
    default: its value.
    kind: class of its values.
    is_right: whether a value of this class may be taken.
    rule: says in words what is right.
    meaning: says in words what the option does.
    dtype: of the option in `Options`, if it is there.
  """
  metadata = dict(kind=kind, is_right=is_right, rule=rule, meaning=meaning, dtype=dtype)
  return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How a text is continued: the one list of options, what each means and may be."""

  max_bytes: int = _option(
    200, numbers.Integral, lambda x: x >= 1, "an integer >= 1", "bytes to add at most"
  )
  temperature: float = _option(
    0.0, numbers.Real, lambda x: 0 <= x <= 1e6, "a number in [0, 1e6]",
    "0 takes the likeliest byte; 1 samples from the model's distribution", "float32",
  )  # fmt: skip
  top_k: int = _option(
    0, numbers.Integral, lambda x: 0 <= x < 2**31, "an integer >= 0 (0 for all)",
    "draw among this many likeliest bytes; 0 for all", "int32",
  )  # fmt: skip
  top_p: float = _option(
    1.0, numbers.Real, lambda x: 0 < x <= 1, "a number in (0, 1]",
    "draw among the likeliest bytes that together have this probability", "float32",
  )  # fmt: skip
  min_p: float = _option(
    0.0, numbers.Real, lambda x: 0 <= x < 1, "a number in [0, 1)",
    "draw among bytes at least this share as likely as the likeliest", "float32",
  )  # fmt: skip
  repetition_penalty: float = _option(
    1.0, numbers.Real, lambda x: 1e-6 <= x <= 1e6, "in [1e-6, 1e6] (1: none)",
    "divides positive logits of bytes that occurred, multiplies negative ones; 1 for none",
    "float32",
  )  # fmt: skip
  seed: int = _option(
    0, numbers.Integral, lambda x: 0 <= x < 2**32, "an integer in [0, 2**32)",
    "of the draws; they depend on it and on nothing else but the text", "uint32",
  )  # fmt: skip
  stop: Sequence[str | bytes] = dataclasses.field(
    default=(), metadata={"meaning": "texts that end the continuation; they are cut off"}
  )
  valid_utf8: bool = _option(
    False, bool, lambda _: True, "true or false",
    "never a byte that cannot go on well-formed UTF-8, nor one that begins a character "
    "which max_bytes would cut", "bool",
  )  # fmt: skip
  ignore_eos: bool = _option(
    False, bool, lambda _: True, "true or false",
    "never a special id: the text does not end before max_bytes", "bool",
  )  # fmt: skip

  def __post_init__(self):
    for field in dataclasses.fields(self):
      if "rule" in field.metadata:
        _check_option(field, getattr(self, field.name))
    if self.temperature < _COLDEST:
      object.__setattr__(self, "temperature", 0.0)
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
      "eos": self.ignore_eos,
      "temperature": self.temperature > 0,
      "filters": self.top_k > 0 or self.top_p < 1 or self.min_p > 0,
    }
    return frozenset(part for part, is_needed in needed.items() if is_needed)


def _check_option(field: dataclasses.Field, value: Any) -> None:
  """Raises ValueError unless an option may have this value."""
  kind, rule = field.metadata["kind"], field.metadata["rule"]
  is_kind = isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
  if not is_kind or not field.metadata["is_right"](value):
    raise ValueError(f"{field.name} is {value!r}; it must be {rule}.")


def _stop_texts(stop: Any) -> tuple[str | bytes, ...]:
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
  ignore_eos: jax.Array  # bool [B]
  stop: jax.Array  # int32 [B, stops, length], -1 on the left of short ones and in unused


def make_options(samplings: Sequence[Sampling], num_stops: int, stop_length: int) -> Options:
  """Arrays from one `Sampling` a row, with room for stop strings."""
  columns = {
    field.name: jnp.asarray([getattr(s, field.name) for s in samplings], dtype)
    for field in dataclasses.fields(Sampling)
    if (dtype := field.metadata.get("dtype"))
  }
  stop = np.full((len(samplings), num_stops, stop_length), -1, np.int32)
  for row, sampling in zip(stop, samplings, strict=True):
    for slot, text in zip(row, sampling.stop, strict=False):
      ids = stop_ids(text)
      slot[stop_length - len(ids) :] = ids
  return Options(**columns, stop=jnp.asarray(stop))


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


def _noise(seed: jax.Array, index: jax.Array, size: int) -> jax.Array:
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
  """The logits [B, C, V] that are sampled from: penalised, scaled, -inf where ruled out."""
  if "seen" in parts:
    penalty = options.repetition_penalty[:, None, None]
    penalised = jnp.where(logits > 0, logits / penalty, logits * penalty)
    logits = jnp.where(seen, penalised, logits)
  if "utf8" in parts:
    ruled_out = options.valid_utf8[:, None, None] & ~utf8.allowed(state, room, logits.shape[-1])
    logits = jnp.where(ruled_out, -jnp.inf, logits)
  if "eos" in parts:
    is_special = np.arange(logits.shape[-1])[None, None] < tokenizer.OFFSET
    ruled_out = options.ignore_eos[:, None, None] & is_special
    logits = jnp.where(ruled_out, -jnp.inf, logits)
  if "temperature" in parts:
    temperature = options.temperature[:, None, None]
    logits = logits / jnp.where(temperature > 0, temperature, 1)
  return _filter(logits, options) if "filters" in parts else logits


def _filter(logits: jax.Array, options: Options) -> jax.Array:
  """Logits [B, C, V], -inf where `options` keep a byte from being drawn."""
  ranked, ids = jax.lax.top_k(logits, logits.shape[-1])
  # The likeliest are kept, up to a last one; of equals, those with smaller ids.
  last = jnp.sum(_kept(ranked, options), axis=-1, keepdims=True) - 1
  least, last_id = (jnp.take_along_axis(x, last, axis=-1) for x in (ranked, ids))
  number = np.arange(logits.shape[-1])[None, None]
  is_kept = (logits > least) | (logits == least) & (number <= last_id)
  return jnp.where(is_kept, logits, -jnp.inf)


def _kept(ranked: jax.Array, options: Options) -> jax.Array:
  """Which of logits [B, C, V], largest first, may be drawn; top_k, then top_p, then min_p."""
  rank = np.arange(ranked.shape[-1])[None, None]
  top_k, top_p, min_p = (
    x[:, None, None] for x in (options.top_k, options.top_p, options.min_p)
  )
  kept = (rank < top_k) | (top_k == 0)
  probabilities = jax.nn.softmax(jnp.where(kept, ranked, -jnp.inf), axis=-1)
  before = jnp.cumsum(probabilities, axis=-1) - probabilities
  kept &= (before < top_p) | (top_p >= 1)
  kept &= probabilities >= min_p * probabilities[..., :1]
  return kept | (rank == 0)
