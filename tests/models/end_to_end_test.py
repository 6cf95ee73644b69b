"""The end-to-end BLT: what each logit depends on, and how patches are made."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forward import TINY, stack
from golden_cases import SAME
from uncached import random_params

from blt_jax import kinds, patching, tokenizer
from blt_jax.models import own_patches
from blt_jax.models.blt import BLT
from blt_jax.models.end_to_end import EndToEndBLT, EndToEndConfig
from blt_jax.ops import losses

SEQ_LEN = 24
BOS, EOS = tokenizer.BOS_ID, tokenizer.EOS_ID
_BLT = {field.name: getattr(TINY, field.name) for field in dataclasses.fields(TINY)}
_NEXT = EndToEndConfig(**_BLT, predictor=stack(16, 1, window=6), threshold=4.48)
CONFIGS = {
  "next": _NEXT,
  "next without skip": dataclasses.replace(_NEXT, skip=False, hash_sizes=()),
  "backward": dataclasses.replace(_NEXT, head="backward", backward_bytes=3),
}
each_config = pytest.mark.parametrize("name", CONFIGS)


@functools.cache
def _params(name):
  """Random parameters, sharpened so that some entropies are above the threshold."""
  params = random_params(CONFIGS[name])
  params["predictor"]["output"]["kernel"] *= 1.5
  return params


@functools.cache
def _run(name):
  """The compiled forward pass: ids [B, S] to logits and extras."""
  model = EndToEndBLT(CONFIGS[name])
  params = {"params": _params(name)}
  return jax.jit(lambda tokens: model.apply(params, tokens, method="forward"))


def _text(seed, rows=SEQ_LEN):
  """Ids [rows, S] of a document each."""
  ids = np.random.default_rng(seed).integers(4, 260, (rows, SEQ_LEN)).astype(np.int32)
  ids[:, 0] = BOS
  return ids


@each_config
def test_later_bytes_change_nothing_before_them(name):
  """Row i has other bytes after position i, which make other patches there."""
  ids, others = np.repeat(_text(1, rows=1), SEQ_LEN, axis=0), _text(2)
  at = np.arange(SEQ_LEN)
  is_later = at > at[:, None]
  changed = np.where(is_later, others, ids)
  (found, made), (want, own) = _run(name)(changed), _run(name)(ids)
  assert (made.patch_lengths != own.patch_lengths).any()
  assert 4 < (own.patch_lengths[0] > 0).sum() < SEQ_LEN - 4
  difference = abs(found - want).max(axis=-1)
  assert difference[~is_later].max() <= 1e-5
  assert difference[is_later].max() > 1e-2


@each_config
def test_gradients_flow_from_the_past_and_only_from_there(name):
  """With respect to embeddings: rows of tables, as every id of the row is another one."""
  model, params = EndToEndBLT(CONFIGS[name]), _params(name)
  ids = np.random.default_rng(3).permutation(np.arange(4, 260))[None, :SEQ_LEN]
  tables = {"predictor": params["predictor"]["embedding"]["embedding"]}
  if CONFIGS[name].skip:
    tables["embedder"] = params["embedder"]["bytes"]["embedding"]

  @jax.jit
  def gradients(position):
    def logit(tables):
      changed = params | {
        "predictor": params["predictor"] | {"embedding": {"embedding": tables["predictor"]}}
      }
      if "embedder" in tables:
        bytes_table = {"bytes": {"embedding": tables["embedder"]}}
        changed["embedder"] = params["embedder"] | bytes_table
      logits = model.apply({"params": changed}, ids)
      return (logits[0, position] * jnp.cos(jnp.arange(260))).sum()

    return {name: abs(g[ids[0]]).sum(axis=-1) for name, g in jax.grad(logit)(tables).items()}

  for position in (0, 5, 12, SEQ_LEN - 2):
    for table, found in gradients(position).items():
      assert (found[position + 1 :] == 0).all(), (table, position)
      assert (found[: position + 1] > 0).all(), (table, position)


def test_the_usual_decoder_rule_would_tell_of_the_next_byte(monkeypatch):
  """A backward entropy closes a patch one byte later than a forward one does."""
  ids = np.repeat(_text(4, rows=1), SEQ_LEN, axis=0)
  at = np.arange(SEQ_LEN)
  is_later = at > at[:, None]
  changed = np.where(is_later, _text(5), ids)
  find = own_patches.find

  def usual(*args):
    patches = find(*args)
    return patches._replace(decoder_ids=patching.decoder_patch_ids(patches.lengths, SEQ_LEN))

  def leak():
    model, params = EndToEndBLT(CONFIGS["backward"]), {"params": _params("backward")}
    run = jax.jit(lambda tokens: model.apply(params, tokens))
    return abs(run(changed) - run(ids)).max(axis=-1)[~is_later].max()

  assert leak() <= 1e-5
  monkeypatch.setattr(own_patches, "find", usual)
  assert leak() > 1e-2


def _by_hand(entropies, threshold, is_late):
  """Starts of patches in a document of one row, byte by byte: bool [S]."""
  starts = np.zeros(len(entropies), bool)
  for t in range(len(entropies)):
    deciding = entropies[t] if is_late else entropies[t - 1]
    starts[t] = t < 2 or deciding > threshold
  return starts


@pytest.mark.parametrize("name", ["next", "backward"])
def test_without_its_bridge_it_is_a_blt_of_these_patches(name):
  """The decoder of the late rule reads the patch before the one of its byte."""
  config, ids = CONFIGS[name], _text(6, rows=3)
  params = _params(name)
  params = params | {"bridge": {"kernel": jnp.zeros_like(params["bridge"]["kernel"])}}
  model = EndToEndBLT(config)
  entropies = np.asarray(model.apply({"params": params}, ids, method="entropies"))
  starts = np.stack([_by_hand(row, config.threshold, name == "backward") for row in entropies])
  logits, extras = jax.jit(lambda p: model.apply({"params": p}, ids, method="forward"))(params)

  # The byte after the row is in a patch, too.
  fires = entropies[:, -1:] > config.threshold if name == "next" else np.zeros((3, 1), bool)
  lengths = patching.lengths_from_starts(np.concatenate([starts, fires], axis=1))
  np.testing.assert_array_equal(extras.patch_lengths[:, : lengths.shape[1]], lengths)
  assert not extras.patch_lengths[:, lengths.shape[1] :].any()
  assert extras.metrics["patches"] == starts.sum() == extras.metrics["boundaries"]

  # A late boundary at t + 1 is none yet at t.
  patch = np.cumsum(starts, axis=1) - 1
  following = np.concatenate([patch[:, 1:], patch[:, -1:] + fires], axis=1)
  decoder_ids = (np.maximum(patch, 1) if name == "backward" else following) - 1
  base = TINY
  blt_params = {k: v for k, v in params.items() if k not in ("bridge", "predictor")}

  def run(blt):
    states, vectors = blt.encode(ids, jnp.asarray(patch), SEQ_LEN + 1)
    latents = blt.think(ids, vectors, jnp.asarray(patch))
    return blt.decode(ids, states, latents, jnp.asarray(decoder_ids), jnp.asarray(patch))

  want = jax.jit(lambda p: BLT(base).apply({"params": p}, method=run))(blt_params)
  chex.assert_trees_all_close(logits, want, **SAME)


@each_config
def test_a_document_alone_and_in_a_row_with_others(name):
  documents, row = _text(7, rows=3), np.full((1, SEQ_LEN), tokenizer.BOE_ID, np.int32)
  places = []
  for document, length, start in zip(documents, (7, 5, 8), (0, 8, 14), strict=True):
    row[0, start : start + length] = document[:length]
    row[0, start + length] = EOS
    places.append(slice(start, start + length))
  logits, _ = _run(name)(row)
  alone, _ = _run(name)(documents)
  for own, place in zip(alone, places, strict=True):
    chex.assert_trees_all_close(logits[0, place], own[: place.stop - place.start], **SAME)


@each_config
def test_a_row_without_slots_goes_on_in_its_last_patch(name):
  config = dataclasses.replace(CONFIGS[name], num_patches=5, threshold=-1.0)
  ids = _text(8, rows=2)
  ids[1, 2], ids[1, 3] = EOS, BOS
  ids[1, 10], ids[1, 11] = EOS, BOS
  ids[0, 20:] = tokenizer.BOE_ID
  model = EndToEndBLT(config)
  run = jax.jit(lambda tokens: model.apply({"params": _params(name)}, tokens, method="forward"))
  logits, extras = run(ids)
  chex.assert_tree_all_finite(logits)
  assert extras.patch_lengths.tolist() == [[1, 1, 1, 1, SEQ_LEN - 3]] * 2
  want = {"patches": 10, "boundaries": 44, "slotless_inputs": 15 + 19, "patch_slots": 10}
  assert {k: float(extras.metrics[k]) for k in want} == want
  # The second document of row 1 has two slots, its third one has none.
  np.testing.assert_array_equal(extras.loss_mask, [[True] * 24, [True] * 11 + [False] * 13])
  later = ids.copy()
  later[:, 15:20] = 70
  assert abs(run(later)[0] - logits)[:, :15].max() <= 1e-5


def test_the_loss_of_a_head_counts_what_is_in_its_document():
  for name in ("next", "backward"):
    config, ids = CONFIGS[name], _text(9, rows=1)
    ids[0, 6], ids[0, 7], ids[0, 20:] = EOS, BOS, tokenizer.BOE_ID
    _, heads = EndToEndBLT(config).apply({"params": _params(name)}, ids, method=_heads)
    _, extras = _run(name)(ids)
    log_probs = np.asarray(jax.nn.log_softmax(heads))[0]
    document = np.repeat([0, 1, 2], [7, 13, 4])
    nats = []
    for t in range(SEQ_LEN):
      aims = [t + 1] if name == "next" else [t - 2, t - 1, t]
      for i, aim in enumerate(aims):
        if 0 <= aim < 20 and t < 20 and document[aim] == document[t]:
          nats.append(-log_probs[t, i, ids[0, aim]])
    assert extras.metrics["head_targets"] == len(nats)
    np.testing.assert_allclose(extras.metrics["head_nats"], np.sum(nats), rtol=1e-5)
    want = config.head_weight * np.sum(nats) / len(heads[0, 0])
    np.testing.assert_allclose(extras.losses["head"], want, rtol=1e-5)
    assert losses.entropy_nats(heads).shape == (1, SEQ_LEN, len(heads[0, 0]))


def _heads(model, tokens):
  return model.predictor(tokens)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(head="both"), "Unknown head 'both'; choose one of"),
    (dict(backward_bytes=1), "backward_bytes is 1; it must be >= 2"),
    (dict(num_patches=2), "num_patches is 2; it must be >= 3, or None"),
    (dict(patch_size=1.0), "patch_size is 1.0; it must be > 1"),
    (dict(head_weight=-1.0), "head_weight -1.0 and threshold_rate 0.05 must be >= 0"),
    (dict(skip=False), r"Without skip .* set hash_sizes=\(\) and tie_embeddings=False"),
    (dict(ngram_vocab_sizes=(9,)), "no frequency n-grams; leave ngram_vocab_sizes"),
  ],
)
def test_configs_that_make_no_sense(changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(_NEXT, **changes)


def test_the_tiny_one_of_the_kind_runs():
  config = kinds.KINDS["end_to_end"].tiny()
  assert dataclasses.replace(config, num_patches=None).patch_slots(10) == 11
  logits = kinds.build_model(config).apply({"params": random_params(config)}, _text(0, rows=2))
  chex.assert_shape(logits, (2, SEQ_LEN, 260))
