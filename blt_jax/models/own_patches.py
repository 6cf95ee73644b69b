"""Patches that a model makes of its own entropies, in static slots."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from blt_jax import patching, tokenizer
from blt_jax.patching import PatchingConfig


class OwnPatches(NamedTuple):
  """The patches of rows of S bytes, in P slots.

  A row that runs out of slots goes on in its last patch.
  """

  starts: jax.Array  # bool [B, S + 1], where patches are wanted, the next byte included
  lengths: jax.Array  # int32 [B, P], rows sum to S + 1
  ids: jax.Array  # int32 [B, S], the patch of each byte
  decoder_ids: jax.Array  # int32 [B, S], the patch that the decoder reads at each byte
  has_slots: jax.Array  # bool [B, S], whether the document of a byte has patches of its own

  @property
  def num_slots(self) -> int:
    """P."""
    return self.lengths.shape[1]


def of_entropies(
  tokens: jax.Array, entropies: jax.Array, rule: PatchingConfig, num_slots: int
) -> OwnPatches:
  """Groups bytes into patches, those of each document as if it were alone.

  Args:
    tokens: int [B, S].
    entropies: float32 [B, S] nats, of the prediction made at each byte from its document.
    rule: of the entropy scheme, with a threshold.
    num_slots: P.
  """
  begins = begin_documents(tokens)
  if rule.cumulative and rule.threshold is not None:
    # What is infinite ends the sum of a document.
    ending = jnp.where(tokens == tokenizer.EOS_ID, jnp.inf, entropies)
    zeros = jnp.zeros_like(entropies[:, 0])
    fires = patching.cumulative_rule(ending, zeros, rule.threshold)[0]
  else:
    before = jnp.pad(entropies[:, :-1], ((0, 0), (1, 0)))
    before = jnp.where(begins, entropies, before)
    fires = patching.entropy_rule(entropies, before, positions(begins), rule)
  return find(tokens, fires, num_slots, False, rule.max_patch_length)


def begin_documents(tokens: jax.Array) -> jax.Array:
  """Whether each of ids [B, S] begins a document, which is so after an EOS: bool [B, S]."""
  ends = tokens[:, :-1] == tokenizer.EOS_ID
  return jnp.pad(ends, ((0, 0), (1, 0)), constant_values=True)


def positions(begins: jax.Array) -> jax.Array:
  """Places int32 [B, S] counted from the newest beginning, of bool [B, S]."""
  at = jnp.arange(begins.shape[1], dtype=jnp.int32)[None]
  return at - jax.lax.cummax(jnp.where(begins, at, 0), axis=1)


def find(
  tokens: jax.Array,
  fires: jax.Array,
  num_slots: int,
  is_late: bool,
  max_patch_length: int | None = None,
) -> OwnPatches:
  """Groups bytes into patches.

  A document, which begins after an EOS, starts a patch with its first byte and one with its
  second. Elsewhere patches start as `fires` says, which may know no more of the row than the
  bytes up to where it stands: what stands at t decides about byte t + 1; or about byte t
  itself, if late. Then the patch before is known to be closed at t and not at t - 1, so
  nothing before t may read it.

  Args:
    tokens: int [B, S].
    fires: bool [B, S].
    num_slots: P.
    is_late: whether `fires` is about the byte that it stands at.
    max_patch_length: longer patches are cut into pieces of this many bytes; None: none is.
  """
  is_end, begins = tokens == tokenizer.EOS_ID, begin_documents(tokens)
  if is_late:  # nobody knows about the byte after the row
    fires = jnp.pad(fires[:, 1:], ((0, 0), (0, 1)))
  starts = patching.starts_from_boundaries(fires | is_end | begins)  # [B, S + 1]
  if max_patch_length is not None:
    starts = patching.split_starts(starts, max_patch_length)
  wanted = jnp.cumsum(starts, axis=1) - 1
  ids = jnp.minimum(wanted, num_slots - 1)
  lengths = jax.vmap(lambda row: jnp.zeros(num_slots, jnp.int32).at[row].add(1))(ids)

  # The patch that each document begins with, and what its decoder reads.
  first = jax.lax.cummax(jnp.where(begins, wanted[:, :-1], 0), axis=1)
  # The last slot is never closed.
  last = num_slots - 2
  newest = ids[:, 1:] - 1
  if is_late:
    newest = jnp.maximum(ids[:, :-1] - 1, jnp.minimum(first, last))
  return OwnPatches(starts, lengths, ids[:, :-1], newest, first <= last)


def counts(tokens: jax.Array, patches: OwnPatches) -> dict[str, jax.Array]:
  """Sums over a batch, float32 [].

  Args:
    tokens: int [B, S].
    patches: of these.

  Returns:
    `patches` that have slots, and the `one_byte_patches` among them; `patch_slots`, B P;
    `boundaries`, starts that are wanted; and `slotless_inputs`, bytes that are in the last
    slot of their row for want of others.
  """
  is_input = tokens != tokenizer.BOE_ID
  number = jnp.cumsum(patches.starts, axis=1) - 1
  has_slot = number < patches.num_slots  # [B, S + 1]
  here, after = patches.starts[:, :-1] & is_input, patches.starts[:, 1:]
  found = {
    "patches": here & has_slot[:, :-1],
    "one_byte_patches": here & after & has_slot[:, 1:],
    "boundaries": here,
    "slotless_inputs": is_input & ~has_slot[:, :-1],
    "patch_slots": jnp.ones_like(patches.lengths),
  }
  return {name: values.sum(dtype=jnp.float32) for name, values in found.items()}
