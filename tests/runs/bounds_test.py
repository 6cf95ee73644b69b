"""Every setting has bounds, and what lies outside them is one clear error."""

import math
import re

import pytest
from ml_collections import ConfigDict
from tiny_runs import tiny_config

from blt_jax import config as settings
from blt_jax.kinds import KINDS
from blt_jax.runs import bounds, corpus, tokenizers, unread


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_and_name_has_a_row_and_defaults_lie_inside(kind):
  config = settings.get_config(kind)
  for name, value in bounds.settings_of(config):
    bound = bounds.bound_of(name)
    if isinstance(value, int | float) and not isinstance(value, bool):
      assert bound is not None, f"{name} wants a row in runs.bounds.BOUNDS"
  bounds.check(config)


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("data.heldout_fraction", 1.0),
    ("data.heldout_fraction", -0.1),
    ("data.heldout_fraction", math.nan),
    ("data.batch_size", 0),
    ("data.batch_size", 10**12),
    ("data.pool_size", 10**12),
    ("data.seq_len", 1),
    ("optimizer.learning_rate", -1.0),
    ("optimizer.learning_rate", math.nan),
    ("optimizer.clip_norm", 0.0),
    ("optimizer.beta1", 1.0),
    ("optimizer.beta2", 2.0),
    ("optimizer.accumulate", 0),
    ("schedule.warmup_steps", -1),
    ("schedule.min_ratio", 2.0),
    ("model.latent.dim", 0),
    ("model.latent.num_layers", -1),
    ("model.encoder.num_heads", 0),
    ("model.dtype", "float31"),
    ("model.hash_sizes", (3, 0)),
    ("model.vocab_size", 259),
    ("checkpoint.keep", 0),
    ("eval.max_batches", 0),
    ("eval.every_steps", 0),
    ("mesh.fsdp", 0),
    ("num_steps", 0),
    ("seed", -1),
  ],
)
def test_what_lies_outside_is_named_with_its_rule(name, value):
  config = tiny_config("blt")
  config.update_from_flattened_dict({name: value})
  with pytest.raises(ValueError, match=f"config.{name} is .*; it must (lie in|be one of)"):
    bounds.check(config)


def test_documents_end_with_the_id_that_batches_have():
  config = tiny_config("byte_lm")
  config.model.eos_id = 5
  with pytest.raises(ValueError, match="config.model.eos_id is 5; it must be one of .2,"):
    bounds.check(config)


@pytest.mark.parametrize("part", ["a", ("a",), (1, 1.0), ("a", True), ("a", "1")])
def test_sources_of_a_mixture_are_pairs(part):
  config = tiny_config("blt")
  config.data.mixture = {"web": part}
  with pytest.raises(ValueError, match="config.data.mixture.web is .*; it must be .path, weig"):
    corpus.stored_manifests(config.data)


def test_a_digest_needs_its_tokenizer(tmp_path):
  (tmp_path / "bpe.model").write_bytes(b"x")
  config = tiny_config("blt")
  config.patching.update(scheme="bpe", tokenizer_digest="00")
  with pytest.raises(ValueError, match="tokenizer_digest is 00, and no tokenizer is named"):
    tokenizers.check_digest(config.patching)
  config.patching.tokenizer = str(tmp_path / "bpe.model")
  with pytest.raises(ValueError, match="tokenizer_digest is 00, and that of .*bpe.model is"):
    tokenizers.resolve(config, ConfigDict())


@pytest.mark.parametrize(
  ("kind", "changes", "said"),
  [
    ("blt", {"num_steps": 2000}, ["warmup_steps is 2000, not below config.num_steps, 2000"]),
    ("blt", {"profile.start": 10001}, ["config.profile.start is 10001, above"]),
    ("blt", {"patching.scheme": "space", "patching.max_patch_length": 9}, []),
    (
      "blt",
      {"patching.scheme": "space", "patching.monotonic": True, "patching.threshold": 1.0},
      ["on the patching scheme 'space': config.patching.monotonic, config.patching.threshold."],
    ),
    ("byte_lm", {"patching.scheme": "space"}, ["on a byte_lm, .*: config.patching.scheme."]),
    ("bpe_lm", {"patching.tokenizer": "x"}, []),
    (
      "megabyte",
      {"patching.patch_size": 4.0},
      ["on a megabyte, .*: config.patching.patch_size"],
    ),
    (
      "byte_lm",
      {"optimizer.groups": {"norm/*": {"thaw": 10**9}}},
      [r"groups\['norm/\*'\] thaws at step 1000000000, not below .*: these parameters never"],
    ),
  ],
)
def test_settings_without_effect_are_said(kind, changes, said):
  config = settings.get_config(kind)
  config.update_from_flattened_dict(changes)
  sentences = list(unread.find(config))
  assert len(sentences) == len(said)
  for sentence, pattern in zip(sentences, said, strict=True):
    assert re.search(pattern, sentence)


@pytest.mark.parametrize(
  ("name", "value", "error"),
  [
    ("patching.split_first", False, "no model reads"),
    ("patching.scheme", "lookup", "lookup scheme"),
  ],
)
def test_settings_that_nobody_would_read_are_refused(name, value, error):
  config = tiny_config("blt")
  config.update_from_flattened_dict({name: value})
  with pytest.raises(ValueError, match=error):
    bounds.check(config)
