"""Where patches start: the patching schemes of BLT as pure functions.

A scheme says at which bytes the next byte starts a patch; everything else follows.
Patches depend on the bytes of their own row only, and on their prefix only: the
patches of `x[:i]` are those of `x` cut at `i`. The top-k rule is the exception, and
"bpe" where a row ends with a delimiter: as in the reference, that one closes nothing.

Functions take numpy arrays and give numpy arrays, or take jax arrays and give jax arrays.

Reference: Meta `bytelatent/data/patcher.py`.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from blt_jax import tokenizer
from blt_jax.patching import checks
from blt_jax.patching.arrays import Array, namespace
from blt_jax.patching.cumulative import cumulative_marks, cumulative_rule
from blt_jax.patching.lengths import lengths_from_starts, split_starts, starts_from_boundaries

LETTER_ID = ord("a") + tokenizer.OFFSET  # stands before the first byte for `space_rule`
SCHEMES = ("entropy", "space", "static", "byte", "bpe", "lookup")


@dataclasses.dataclass(frozen=True)
class PatchingConfig:
  """How bytes are grouped into patches.

  Attributes:
    scheme: one of `SCHEMES`.
    threshold: nats; "entropy" starts a patch where the entropy exceeds it. None asks
      for the top-k rule: the `S // patch_size - 2` most uncertain bytes of a row.
    threshold_add: nats; the entropy must also rise by more than this ("global and add").
    monotonic: compare the rise of the entropy with `threshold`, not the entropy.
    cumulative: compare the sum of the entropies since the last patch started with
      `threshold`, not the entropy of one byte.
    reset_at_newline: entropies are those of a context that begins anew after each
      newline byte (paper, section 4.4); whoever computes them reads this.
    patch_size: bytes per patch of the "static" scheme and of the top-k rule.
    max_patch_length: longer patches are cut into pieces of this many bytes.
    delimiters: ids of the "bpe" scheme have a delimiter before each piece, as in the
      reference. False: they are bytes alone, which do not tell pieces; whoever has the
      tokenizer makes the lengths.
    split_first: the first byte is a patch of its own, as the model requires. False
      gives the lengths of Meta's static scheme, whose first patch is a whole one.
    coarser: of several resolutions, what the coarser ones have in place of `threshold`, or of
      the static scheme's `patch_size`, rising; empty: there is one resolution.
  """

  scheme: str = "entropy"
  threshold: float | None = 1.335442066192627
  threshold_add: float | None = None
  monotonic: bool = False
  cumulative: bool = False
  reset_at_newline: bool = False
  patch_size: float | None = None
  max_patch_length: int | None = None
  delimiters: bool = True
  split_first: bool = True
  coarser: tuple[float, ...] = ()

  def __post_init__(self):
    if self.scheme not in SCHEMES:
      raise ValueError(f"Unknown scheme {self.scheme!r}; choose one of {SCHEMES}.")
    for name in ("threshold", "threshold_add", "patch_size", "max_patch_length"):
      if (value := getattr(self, name)) is not None and not checks.is_number(value):
        raise ValueError(f"{name} is {value!r}; it must be a number.")
    if self.max_patch_length is not None and self.max_patch_length < 1:
      raise ValueError(f"max_patch_length is {self.max_patch_length}; it must be >= 1.")
    if self.scheme == "static" and (self.patch_size is None or self.patch_size < 1):
      raise ValueError(f"The static scheme needs patch_size >= 1, got {self.patch_size}.")
    if self.is_top_k and (self.patch_size is None or self.patch_size < 1):
      raise ValueError(
        "The entropy scheme needs a threshold, or patch_size >= 1 for the top-k rule."
      )
    if self.is_top_k and (self.monotonic or self.cumulative or self.threshold_add is not None):
      raise ValueError("The rules monotonic, cumulative and threshold_add need a threshold.")
    if self.cumulative and (self.monotonic or self.threshold_add is not None):
      raise ValueError("cumulative excludes monotonic and threshold_add: choose one rule.")
    if self.coarser:
      checks.check_nested(self._finest, self.coarser, self._rule)

  @functools.cached_property
  def resolutions(self) -> "tuple[PatchingConfig, ...]":
    """The rules of all resolutions, each alone, from fine to coarse."""
    if not self.coarser:
      return (self,)
    name = "patch_size" if self.scheme == "static" else "threshold"
    changes: list[dict[str, Any]] = [{name: size} for size in (self._finest, *self.coarser)]
    return tuple(dataclasses.replace(self, coarser=(), **change) for change in changes)

  @property
  def _finest(self) -> float | None:
    return self.patch_size if self.scheme == "static" else self.threshold

  @property
  def _rule(self) -> str:
    return "cumulative" if self.cumulative else "top-k" if self.is_top_k else self.scheme

  @property
  def is_top_k(self) -> bool:
    """Whether patches are the k most uncertain bytes, which is not a causal rule."""
    return self.scheme == "entropy" and self.threshold is None


def patch_lengths(
  tokens: Array,
  config: PatchingConfig,
  entropies: Array | None = None,
  include_next: bool = True,
  lookup_table: Array | None = None,
) -> Array:
  """Groups the bytes of each row into patches.

  Args:
    tokens: int [B, S] ids.
    config: the scheme.
    entropies: float [B, S] nats, of the prediction made at each byte; scheme "entropy".
    include_next: also say whether the byte after the row, not seen yet, starts a patch.
      Models want it; documents that will be packed do not.
    lookup_table: bool [V, V]; scheme "lookup" starts a patch after the pairs marked.

  Returns:
    int32 [B, P] bytes per patch, of several resolutions the finest, zeros on the right; rows
    sum to S + 1, or to S without the next byte.

  Raises:
    ValueError: what the scheme needs is missing or misshapen, or entropies hold NaN.
  """
  starts = patch_starts(tokens, config, entropies, include_next, lookup_table)
  return lengths_from_starts(starts[0])


def nested_lengths(
  tokens: Array,
  config: PatchingConfig,
  entropies: Array | None = None,
  include_next: bool = True,
) -> Array:
  """As `patch_lengths`, at each resolution.

  Returns:
    int32 [R, B, P], from fine to coarse; coarser ones have more zeros on the right.
  """
  xp = namespace(tokens)
  starts = patch_starts(tokens, config, entropies, include_next)
  found = [lengths_from_starts(own) for own in starts]
  width = found[0].shape[1]
  return xp.stack([xp.pad(own, ((0, 0), (0, width - own.shape[1]))) for own in found])


def patch_starts(
  tokens: Array,
  config: PatchingConfig,
  entropies: Array | None = None,
  include_next: bool = True,
  lookup_table: Array | None = None,
) -> list[Array]:
  """Marks the bytes that start patches, at each resolution.

  A coarse patch is several fine ones: what starts one starts a finer one too, also where
  `max_patch_length` cuts it.

  Args: as in `patch_lengths`.

  Returns:
    bool [B, T] of each of R resolutions, from fine to coarse; T is S + 1, or S without the
    next byte.

  Raises:
    ValueError: as `patch_lengths`.
  """
  if entropies is not None:
    checks.check_entropies(entropies)
  nested: list[Array] = []
  for rule in reversed(config.resolutions):
    boundaries = find_boundaries(tokens, rule, entropies, lookup_table)
    if rule.scheme == "bpe":  # as in the reference: a delimiter at the very end is open
      position = namespace(tokens).arange(tokens.shape[1])[None]
      boundaries = boundaries & (position < tokens.shape[1] - 1)
    starts = starts_from_boundaries(boundaries, include_next, rule.split_first)
    if nested:
      starts = starts | nested[0]
    if rule.max_patch_length is not None:
      starts = split_starts(starts, rule.max_patch_length)
    nested.insert(0, starts)
  return nested


def find_boundaries(
  tokens: Array,
  config: PatchingConfig,
  entropies: Array | None = None,
  lookup_table: Array | None = None,
) -> Array:
  """Marks the bytes after which a patch starts, of several resolutions the finest.

  Args: as in `patch_lengths`.

  Returns:
    bool [B, S]; True at t means that byte t + 1 starts a patch. What stands at 0 does
    not matter, since byte 1 always starts a patch.
  """
  if tokens.ndim != 2 or tokens.shape[1] < 1:
    raise ValueError(f"tokens must be [B, S] with S >= 1, got {tokens.shape}.")
  xp = namespace(tokens)
  if config.scheme == "entropy":
    if entropies is None or entropies.shape != tokens.shape:
      shape = None if entropies is None else entropies.shape
      raise ValueError(f"The entropy scheme needs entropies {tokens.shape}, got {shape}.")
    return _entropy_boundaries(xp.asarray(entropies), config)
  if config.scheme == "space":
    first = xp.full((len(tokens), 1), LETTER_ID, tokens.dtype)
    before = xp.concatenate([first, tokens[:, :-1]], axis=1)
    return space_rule(tokens, before)
  if config.scheme == "static":
    patch = np.floor(np.arange(tokens.shape[1] + 1) / config.patch_size)
    return xp.broadcast_to(xp.asarray(patch[1:] != patch[:-1]), tokens.shape)
  if config.scheme == "byte":
    return xp.ones(tokens.shape, bool)
  if config.scheme == "bpe":
    if not config.delimiters:
      raise ValueError(
        "Bytes without delimiters do not tell pieces apart: give patch_lengths, made with the "
        "tokenizer as by data.transforms.PatchPieces."
      )
    return tokens == tokenizer.BPE_ID
  if config.scheme != "lookup":
    raise ValueError(f"Nothing marks the boundaries of scheme {config.scheme!r}.")
  if lookup_table is None:
    raise ValueError("The lookup scheme needs a lookup_table, bool [V, V].")
  hits = xp.asarray(lookup_table)[tokens[:, :-1], tokens[:, 1:]]
  return xp.pad(hits, ((0, 0), (1, 0)))


def _entropy_boundaries(entropies: Array, config: PatchingConfig) -> Array:
  xp = namespace(entropies)
  threshold = config.threshold
  is_plain = not (config.cumulative or config.monotonic) and config.threshold_add is None
  is_half = entropies.dtype == np.float16
  if is_half and is_plain and threshold is not None and 0 <= threshold < np.inf:
    return _exceed(entropies, threshold)
  entropies = xp.asarray(entropies, xp.float32)
  if config.is_top_k:
    count = max(int(entropies.shape[1] // config.patch_size) - 2, 0)
    order = xp.argsort(-entropies[:, 1:], axis=-1, stable=True)
    rank = xp.argsort(order, axis=-1)
    return xp.pad(rank < count, ((0, 0), (1, 0)))
  if config.cumulative and config.threshold is not None:
    if xp is np:
      return cumulative_marks(entropies, config.threshold)
    return cumulative_rule(entropies, xp.zeros_like(entropies[:, 0]), config.threshold)[0]
  before = xp.concatenate([entropies[:, :1], entropies[:, :-1]], axis=1)
  positions = np.arange(entropies.shape[1], dtype=np.int32)[None]
  return entropy_rule(entropies, before, positions, config)


def _exceed(entropies: np.ndarray, threshold: float) -> np.ndarray:
  """Where float16 entropies exceed a threshold of 0 or more, as float32 numbers would.

  Positive numbers are in the order of their bits, which numpy compares far faster.
  """
  first, count = _bits_above(threshold)
  return entropies.view(np.uint16) - first < count


@functools.lru_cache
def _bits_above(threshold: float) -> tuple[np.uint16, np.uint16]:
  """The least float16 above a threshold, as bits, and how many there are up to infinity.

  Negative numbers and NaN are beyond infinity.
  """
  below = np.float16(min(threshold, 65504.0))  # the largest one
  if below > np.float32(threshold):  # it was rounded up
    below = np.nextafter(below, np.float16(0))
  bits = below.view(np.uint16)
  return bits + np.uint16(1), np.float16(np.inf).view(np.uint16) - bits


def entropy_rule(
  entropies: Array, entropies_before: Array, positions: Array, config: PatchingConfig
) -> Array:
  """Marks the bytes after which a patch starts, for all threshold rules but the cumulative.

  Args:
    entropies: float32 [B, S] nats, of the prediction made at each byte.
    entropies_before: float32 [B, S], at the byte before.
    positions: int [B, S] or [1, S], of each byte in its row.
    config: the rule.

  Returns:
    bool [B, S].
  """
  if config.monotonic:
    return (entropies - entropies_before > config.threshold) | (positions == 1)
  above = entropies > config.threshold
  if config.threshold_add is None:
    return above
  # The reference never lets byte 3 start a patch under this rule.
  rise = entropies - entropies_before
  return ((rise > config.threshold_add) & above & (positions >= 3)) | (positions == 1)


def space_rule(tokens: Array, tokens_before: Array) -> Array:
  """Marks the first byte of each run of bytes that are not letters or digits.

  Args:
    tokens: int [B, S].
    tokens_before: int [B, S], the byte before each; a letter where there is none.

  Returns:
    bool [B, S].
  """
  is_special = tokens < tokenizer.OFFSET
  return (is_spacelike(tokens) & ~is_spacelike(tokens_before)) | is_special


def is_spacelike(tokens: Array) -> Array:
  """Which ids [...] are no letters, digits or UTF-8 continuation bytes: bool [...]."""
  byte = tokens.astype(np.int32) - tokenizer.OFFSET  # special ids are negative
  return (
    (byte < ord("0"))
    | ((byte > ord("9")) & (byte < ord("A")))
    | ((byte > ord("Z")) & (byte < ord("a")))
    | ((byte > ord("z")) & (byte < 0x80))
    | (byte >= 0xC0)  # UTF-8 lead bytes
  )
