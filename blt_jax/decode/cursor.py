"""Where a row stands between two bytes, and how patching moves it on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from blt_jax import patching, tokenizer
from blt_jax.decode.columns import running_max, running_sum
from blt_jax.patching import PatchingConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cursor:
  """What the patching of the bytes to come depends on: [B] each.

  Of C bytes that are pending, there is a trail of them: [B, C + 1] each.
  """

  position: jax.Array  # int32, bytes read
  patch: jax.Array  # int32, patch of the byte to come; all before it are closed
  start: jax.Array  # int32, where a rule last began a patch (not a cut of a long one)
  token: jax.Array  # int32, the last byte
  entropy: jax.Array  # float32, of the prediction made at it
  total: jax.Array  # float32, sum of the entropies since the last patch began
  document: jax.Array  # int32, where the document began
  eos_patch: jax.Array  # int32, newest patch that holds an EOS, or -1


def init_cursor(batch_size: int) -> Cursor:
  """Rows that have read nothing."""

  def full(value, dtype=jnp.int32):
    return jnp.full(batch_size, value, dtype)

  letter, zero = full(patching.LETTER_ID), full(0, jnp.float32)
  return Cursor(full(0), full(0), full(0), letter, zero, zero, full(0), full(-1))


def advance_cursor(
  config: PatchingConfig,
  cursor: Cursor,
  tokens: jax.Array,
  entropies: jax.Array,
  lookup_table: jax.Array | None = None,
  capacity: int = 0,
  by_document: bool = False,
  coarser: jax.Array | None = None,
) -> tuple[jax.Array, Cursor]:
  """Patches the next bytes.

  Args:
    config: a rule that looks at a byte's prefix only; of one resolution.
    cursor: [B].
    tokens: int [B, C].
    entropies: float32 [B, C]; read by the entropy scheme only.
    lookup_table: bool [V, V] of the "lookup" scheme.
    capacity: the most positions of a row.
    by_document: each document of a row is patched as if it were alone: what follows an EOS
      starts a patch, and so does the byte after that; see `models.own_patches`.
    coarser: bool [B, C], whether the byte after each starts a patch of a coarser resolution,
      and so one of this; None where there is none.

  Returns:
    bool [B, C], whether the byte after each starts a patch; and the trail, fields
    [B, C + 1], of cursors before the first byte and after each.
  """
  # Positions, ids and entropies of the bytes and of the one before.
  length = tokens.shape[1]
  position = cursor.position[:, None] + np.arange(length + 1)[None]  # [B, C + 1]
  here, after = position[:, :-1], position[:, 1:]
  token, entropy = _prepend(cursor.token, tokens), _prepend(cursor.entropy, entropies)
  is_eos = tokens == tokenizer.EOS_ID
  document = _last(cursor.document, after, is_eos)
  before = entropy[:, :-1]
  if by_document:
    here = here - document[:, :-1]
    before = jnp.where(here == 0, entropies, before)

  # Where the rule begins a patch, and where a long one is cut.
  summed = jnp.where(is_eos, jnp.inf, entropies) if by_document else entropies
  if config.scheme == "entropy" and config.cumulative and config.threshold is not None:
    fires, total = patching.cumulative_rule(summed, cursor.total, config.threshold)
  else:
    fires = _fires(config, here, token, (before, entropies), lookup_table, capacity)
    total = jnp.zeros_like(entropies)
  fires |= here == 0  # the first byte is a patch of its own
  if by_document:
    fires |= is_eos
  if coarser is not None:
    fires |= coarser
  start = _last(cursor.start, after, fires)
  begins = fires
  if config.max_patch_length is not None:
    begins = (after - start[:, 1:]) % config.max_patch_length == 0
  patch = _prepend(cursor.patch, cursor.patch[:, None] + running_sum(begins.astype(jnp.int32)))
  return begins, Cursor(
    position=position,
    patch=patch,
    start=start,
    token=token,
    entropy=entropy,
    total=_prepend(cursor.total, total),
    document=document,
    eos_patch=_last(cursor.eos_patch, patch[:, :-1], is_eos),
  )


def _fires(
  config: PatchingConfig,
  here: jax.Array,
  token: jax.Array,
  entropies: tuple[jax.Array, jax.Array],
  lookup_table: jax.Array | None,
  capacity: int,
) -> jax.Array:
  """Whether the rule alone begins a patch after each byte, [B, C]; not the cumulative rule.

  `here` [B, C] are the positions; `token` [B, C + 1] begins one byte before; `entropies` are
  those at the bytes before, [B, C], and at the bytes.
  """
  if config.scheme == "entropy":
    before, entropy = entropies
    return patching.entropy_rule(entropy, before, here, config)
  if config.scheme == "space":
    return patching.space_rule(token[:, 1:], token[:, :-1])
  if config.scheme == "static" and config.patch_size is not None:
    # Divided on the host: float32 would misplace some starts of uneven sizes.
    patch = np.floor(np.arange(capacity + 1) / config.patch_size)
    return jnp.asarray(patch[1:] != patch[:-1])[here]
  if config.scheme == "lookup" and lookup_table is not None:
    return lookup_table[token[:, :-1], token[:, 1:]]
  if config.scheme != "byte":
    raise ValueError(f"Nothing marks the boundaries of scheme {config.scheme!r} byte by byte.")
  return jnp.ones(here.shape, bool)


def _prepend(first: jax.Array, rest: jax.Array) -> jax.Array:
  """[B, C + 1] from [B] and [B, C]."""
  return jnp.concatenate([first[:, None], rest], axis=1)


def _last(carried: jax.Array, values: jax.Array, chosen: jax.Array) -> jax.Array:
  """The newest chosen value before each place, [B, C + 1]; values increase along a row."""
  return running_max(_prepend(carried, jnp.where(chosen, values, -1)))


def check_causal(config: PatchingConfig) -> None:
  """Raises ValueError unless a patch's start depends on the bytes before it alone."""
  if config.is_top_k:
    raise ValueError(
      "Top-k patching compares all bytes of a text, those to come included; generate with "
      "a threshold (config.patching.threshold)."
    )
  if config.scheme == "bpe":
    raise ValueError(
      "The bpe scheme treats the last byte of a text unlike the others, so no byte can be "
      "generated after it; choose another scheme."
    )
  if not config.split_first:
    raise ValueError("The model needs a first patch of one byte: set split_first=True.")
