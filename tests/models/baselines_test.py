"""MegaByte, SpaceByte and flat bytes: what they compute, and what each logit depends on."""

import dataclasses
import functools
import string

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy_blocks as dense
import pytest
from forward import stack
from golden_cases import SAME
from uncached import random_params

from blt_jax import kinds, tokenizer
from blt_jax.models.config import ByteLMConfig
from blt_jax.models.megabyte import MegaByte, MegaByteConfig
from blt_jax.models.spacebyte import SpaceByte, SpaceByteConfig, global_positions

SEQ_LEN, P = 24, 4
BOS, EOS = tokenizer.BOS_ID, tokenizer.EOS_ID
_PLAIN = dict(rope_theta=10_000.0)
CONFIGS = {
  "megabyte": MegaByteConfig(
    stack(32, 2, **_PLAIN), stack(16, 2, **_PLAIN), patch_size=P, max_patches=8
  ),
  "spacebyte": SpaceByteConfig(stack(16, 3, window=6, **_PLAIN), stack(24, 2, **_PLAIN)),
  "flat": ByteLMConfig(stack(16, 2, **_PLAIN)),
  "flat with a window": ByteLMConfig(stack(16, 2, window=5, **_PLAIN)),
}
each_kind = pytest.mark.parametrize("name", CONFIGS)


@functools.cache
def _run(name):
  """A compiled forward pass with random parameters: ids [B, S] to logits."""
  model, params = kinds.build_model(CONFIGS[name]), random_params(CONFIGS[name])
  return jax.jit(lambda tokens: model.apply({"params": params}, tokens))


def _text(seed, rows=SEQ_LEN, length=SEQ_LEN):
  """Ids [rows, length] of one document each: words, punctuation, any byte.

  Words have five letters at most, so that one layer with a window of six sees them whole.
  """
  rng = np.random.default_rng(seed)
  letters = np.frombuffer((string.ascii_letters + "  .,").encode(), np.uint8)
  ids = np.where(
    rng.random((rows, length)) < 0.8,
    rng.choice(letters, (rows, length)),
    rng.integers(0, 256, (rows, length)),
  ).astype(np.int32)
  ids[:, 3::5] = ord(" ")
  ids += tokenizer.OFFSET
  ids[:, 0] = BOS
  return ids


# --- Against NumPy


def _megabyte(params, config, ids):
  """Logits [S, V] of a document [S]: patch by patch, as the paper draws it."""
  patches = []
  for k in range(len(ids) // P):
    if k == 0:
      patch = params["global_start"]["embedding"][0]
    else:
      read = ids[(k - 1) * P + 1 : k * P + 1]
      patch = np.concatenate([params["global_embedding"]["embedding"][i] for i in read])
    patches.append(patch + params["global_positions"]["embedding"][k])
  states = dense.run_stack(
    params["global_transformer"], np.stack(patches), dense.causal(len(patches)), 4
  )
  logits = []
  for k, state in enumerate(states):
    x = state.reshape(P, -1) @ params["hand_over"]["kernel"]
    x = x + params["local_positions"]["embedding"]
    for j in range(1, P):
      x[j] += params["local_embedding"]["embedding"][ids[k * P + j]]
    x = dense.run_stack(params["local_transformer"], x, dense.causal(P), 4)
    logits.append(dense.finish(params, x))
  return np.concatenate(logits)


def _is_global(ids):
  """By the footnote: not [0-9A-Za-z] nor a continuation byte, after none such; and BOS."""
  allowed = set((string.ascii_letters + string.digits).encode()) | set(range(0x80, 0xC0))
  spacelike = [int(i) - tokenizer.OFFSET not in allowed for i in ids]
  return [
    ids[t] == BOS or (spacelike[t] and not (t and spacelike[t - 1])) for t in range(len(ids))
  ]


def _spacebyte(params, config, ids):
  local = dense.causal(len(ids), 6)
  x = params["embedding"]["embedding"][ids]
  x = dense.run_stack(params["initial"], x, local, 4)
  at = np.flatnonzero(_is_global(ids))
  wide = np.concatenate([np.zeros((len(at), 8)), x[at]], axis=1)
  wide = dense.run_stack(params["global_transformer"], wide, dense.causal(len(at)), 4)
  x[at] += wide[:, -16:]
  return dense.finish(params, dense.run_stack(params["final"], x, local, 4))


def _flat(params, config, ids):
  x = params["embedding"]["embedding"][ids]
  visible = dense.causal(len(ids), config.transformer.window)
  return dense.finish(params, dense.run_stack(params["transformer"], x, visible, 4))


_DENSE = {ByteLMConfig: _flat, MegaByteConfig: _megabyte, SpaceByteConfig: _spacebyte}


@each_kind
def test_logits_are_those_of_numpy(name):
  config, ids = CONFIGS[name], _text(0, rows=3)
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), random_params(config))
  want = np.stack([_DENSE[type(config)](params, config, row) for row in ids])
  chex.assert_trees_all_close(_run(name)(ids), want.astype(np.float32), **SAME)


# --- What depends on what


def _first_read(name):
  """A MegaByte never reads the first id of a document, which is a BOS."""
  return 1 if name == "megabyte" else 0


def _reach(name):
  """Bytes that a logit depends on, its own included."""
  return 1 + 2 * 4 if name == "flat with a window" else SEQ_LEN


@each_kind
@pytest.mark.parametrize("seed", [1, 2])
def test_a_logit_depends_on_every_earlier_byte_and_on_no_later_one(name, seed):
  """Row i has another byte at position i."""
  ids = np.repeat(_text(seed, rows=1), SEQ_LEN, axis=0)
  changed, at = ids.copy(), np.arange(SEQ_LEN)
  # Letters become letters, so that the same positions are global.
  is_letter = np.isin(ids[at, at] - tokenizer.OFFSET, np.frombuffer(b"abcdefghijklm", np.uint8))
  changed[at, at] = np.where(is_letter, ids[at, at] + 5, (ids[at, at] - 4 + 100) % 256 + 4)
  difference = abs(_run(name)(changed) - _run(name)(ids)).max(axis=-1)  # [changed, read]
  later = at[:, None] > at
  assert (difference[later] <= 1e-6).all()
  distance = at - at[:, None]
  must = (distance >= 0) & (distance < _reach(name)) & (at[:, None] >= _first_read(name))
  assert (difference[must] > 1e-6).all()
  if name == "flat with a window":
    assert (difference[distance >= _reach(name)] <= 1e-6).all()


@each_kind
def test_gradients_flow_from_the_past_and_only_from_there(name):
  """With respect to embeddings: rows of a table, as every id of the row is another one."""
  config = CONFIGS[name]
  model, params = kinds.build_model(config), random_params(config)
  ids = np.random.default_rng(3).permutation(np.arange(4, 260))[None, :SEQ_LEN]
  tables = [k for k in params if k.endswith("embedding")]

  @jax.jit
  def gradients(position):
    def logit(tables):
      logits = model.apply({"params": params | tables}, ids)
      return (logits[0, position] * jnp.cos(jnp.arange(260))).sum()

    grads = jax.grad(logit)({k: params[k] for k in tables})
    return sum(abs(g["embedding"][ids[0]]).sum(axis=-1) for g in grads.values())

  for position in (0, 3, 4, 11, 17, SEQ_LEN - 1):
    found = np.asarray(gradients(position))
    reach = slice(max(_first_read(name), position + 1 - _reach(name)), position + 1)
    assert (found[position + 1 :] == 0).all(), position
    assert (found[reach] > 0).all(), position


@each_kind
def test_a_document_alone_and_in_a_row_with_others(name):
  ids = _text(4, rows=3, length=SEQ_LEN)
  row = np.full((1, SEQ_LEN), EOS, np.int32)
  lengths, multiple = (6, 5, 8), kinds.build_model(CONFIGS[name]).row_multiple
  starts, start = [], 0
  for document, length in zip(ids, lengths, strict=True):
    starts.append(start)
    row[0, start : start + length] = document[:length]
    end = start + length + 1  # after an EOS
    start = -(-end // multiple) * multiple
    row[0, end:start] = tokenizer.BOE_ID
  together = _run(name)(row)[0]
  for document, start, length in zip(_run(name)(ids), starts, lengths, strict=True):
    chex.assert_trees_all_close(together[start : start + length], document[:length], **SAME)


# --- Global positions


@pytest.mark.parametrize(
  ("text", "want"),
  [
    ("ab cd", [1, 0, 0, 1, 0, 0]),
    (" ab", [1, 0, 0, 0]),  # a space after BOS is none
    ("a, b\n\nc", [1, 0, 1, 0, 0, 1, 0, 0]),
    ("é ü", [1, 0, 0, 1, 0, 0]),  # a lead byte after BOS is none, nor one after a space
    ("aé", [1, 0, 1, 0]),
    ("a_1-Z", [1, 0, 1, 0, 1, 0]),
  ],
)
def test_global_positions_of_texts(text, want):
  ids = tokenizer.encode(text, add_eos=False)
  np.testing.assert_array_equal(global_positions(jnp.asarray(ids[None]))[0], np.array(want) > 0)


def test_global_positions_of_a_prefix_are_those_of_the_whole():
  ids = _text(5, rows=20)
  ids[:, 9] = EOS
  ids[::2, 10] = BOS
  whole = np.asarray(global_positions(jnp.asarray(ids)))
  for length in range(1, SEQ_LEN):
    part = np.asarray(global_positions(jnp.asarray(ids[:, :length])))
    np.testing.assert_array_equal(part, whole[:, :length])
  alone = np.asarray(global_positions(jnp.asarray(ids[:, 10:])))
  np.testing.assert_array_equal(alone, whole[:, 10:])
  for row, found in zip(ids, whole, strict=True):
    np.testing.assert_array_equal(found[:10], _is_global(row)[:10])


def test_rows_with_too_many_global_positions_leave_later_targets_out():
  ids = np.full((2, SEQ_LEN), ord("a") + tokenizer.OFFSET, np.int32)
  ids[:, 0] = BOS
  ids[0, 2:20:2] = ord(" ") + tokenizer.OFFSET  # 9 more
  config = dataclasses.replace(CONFIGS["spacebyte"], num_patches=4)
  params = {"params": random_params(config)}
  logits, extras = SpaceByte(config).apply(params, ids, method="forward")
  is_first = np.arange(SEQ_LEN) < 8  # the fifth would be at 8
  np.testing.assert_array_equal(extras.loss_mask, [is_first, is_first | True])
  assert extras.metrics["patches"] == 4 + 1 and extras.metrics["patch_slots"] == 8
  want = _run("spacebyte")(ids)
  chex.assert_trees_all_close(logits[0, :8], want[0, :8], **SAME)
  chex.assert_trees_all_close(logits[1], want[1], **SAME)
  assert abs(logits[0, 8:] - want[0, 8:]).max(axis=-1).min() > 1e-4


# --- Errors


@pytest.mark.parametrize(
  ("length", "message"),
  [(22, "reads rows of 4, 8, ... 32 bytes, not 22"), (36, "max_patches 8 .* not 36")],
)
def test_rows_that_are_no_whole_patches_or_too_long(length, message):
  config = CONFIGS["megabyte"]
  with pytest.raises(ValueError, match=message):
    MegaByte(config).apply({"params": random_params(config)}, np.zeros((1, length), np.int32))


@pytest.mark.parametrize(
  ("name", "changes", "message"),
  [
    ("megabyte", dict(patch_size=5), "global_model.dim 32 must be a multiple of patch_size 5"),
    ("megabyte", dict(patch_size=1), "patch_size is 1 .*>= 2"),
    ("megabyte", dict(local_model=stack(16, 1, window=3)), "local_model.window is 3"),
    (
      "spacebyte",
      dict(local_model=stack(16, 1)),
      "local_model.num_layers is 1; it must be >= 2",
    ),
    ("spacebyte", dict(global_model=stack(8, 1)), "global_model.dim 8 must be at least"),
    ("spacebyte", dict(num_patches=0), "num_patches is 0; it must be >= 1"),
  ],
)
def test_sizes_that_do_not_go_together(name, changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(CONFIGS[name], **changes)
