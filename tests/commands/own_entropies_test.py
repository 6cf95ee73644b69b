"""A BLT that scores text itself, learns its own patches and is read by them."""

import json

import jax
import numpy as np
import pytest
from forward import logits_of, pad_lengths
from tiny_runs import tiny_config, write_text
from uncached import random_params

from blt_jax import (
  calibrate,
  evaluate,
  patching,
  score_entropies,
  show_patches,
  tokenizer,
  train,
)
from blt_jax import config as settings
from blt_jax.data import windows
from blt_jax.data.reading import scored
from blt_jax.decode import Generator, Sampling
from blt_jax.entropy.neural import EntropyScorer
from blt_jax.evals import text_entropies
from blt_jax.patching import PatchingConfig
from blt_jax.runs import folder, loading, stored_params

pytestmark = pytest.mark.skipif(
  jax.device_count() < 8, reason="needs the fake devices of conftest.py"
)
CONTEXT = 31  # bytes, in rows of 32


@pytest.fixture(scope="module")
def home(tmp_path_factory):
  """Text, and the runs of an entropy model and of a BLT, whose parameters are random."""
  path = tmp_path_factory.mktemp("own")
  write_text(path / "text", num_files=6)
  for kind in ("byte_lm", "blt"):
    config = _config(path, kind)
    params = random_params(settings.make_model_config(config.model))
    params["output"]["kernel"] *= 3
    stored_params.save(config.workdir, 1, params, config)
    folder.save_config(config.workdir, config)
  return path


def _config(home, kind, workdir=None):
  config = tiny_config(kind, workdir=str(home / (workdir or kind)), num_steps=2)
  config.data.update(path=str(home / "text"), heldout_fraction=0.2)
  if kind == "blt":
    for name in ("encoder", "latent", "decoder"):
      config.model[name].unroll = True  # compiles faster
    config.patching.update(entropy_model=str(home / "byte_lm"), threshold=3.0)
  return config


@pytest.fixture(scope="module", name="scores")
def _scores(home):
  """The text with the BLT's own entropies, and a threshold of them."""
  output = home / "scored"
  flags = [f"--model={home / 'blt'}", f"--input={home / 'text'}", f"--output={output}"]
  score_entropies.main([*flags, "--dtype=float32"])
  calibrate.main([f"--run={output}", "--target_bytes_per_patch=3"])
  return output


def _softmax_entropies(run, tokens, entropies, start, stop):
  """NumPy's, of logits of the ids from `start` to `stop`, alone in a row."""
  rule = settings.make_patching_config(run.config.patching)
  part = tokens[None, start:stop]
  lengths = patching.patch_lengths(part, rule, entropies[None, start:stop])
  part = np.pad(part, ((0, 0), (0, CONTEXT + 2 - part.shape[1])))
  lengths = pad_lengths(lengths, part.shape[1], part.shape[1] + 1)
  logits = np.asarray(logits_of(run.model.config, run.params, part, lengths)[0], np.float64)
  logits -= logits.max(axis=1, keepdims=True)
  shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  return -(shares * np.log(shares)).sum(axis=1)[: stop - start]


def test_scores_are_entropies_of_the_logits(home, scores):
  """Under the present patches, in windows of a row's length."""
  run = folder.load_run(home / "blt")
  source = EntropyScorer(*folder.load_entropy_model(home / "byte_lm"))
  document = scored.ScoredReader(scores)[0]
  tokens = tokenizer.encode(document.text)
  before = source(tokens)
  assert len(document.entropies) == len(tokens) and document.entropies[-1] == 0
  assert scored.load_manifest(scores).window == CONTEXT
  sizes = tokens >= tokenizer.OFFSET
  for start, first, stop in [*windows.cut(sizes, CONTEXT)][:4]:
    want = _softmax_entropies(run, tokens, before, start, stop)
    found = document.entropies[first - 1 : stop - 1]
    np.testing.assert_allclose(found, want[first - 1 - start : -1], atol=1e-4)


def test_a_round_of_training_on_own_entropies(home, scores, capsys):
  config = _config(home, "blt", "own")
  config.init_from = str(home / "blt")
  config.data.path = str(scores)
  config.patching.update(entropies="stored", entropy_model="", threshold=None)
  numbers = train.train(config)
  assert 2.5 < numbers["patch_size"] < 3.5
  section = folder.load_config(home / "own").patching
  assert section.entropy_model == str(home / "blt") and section.threshold is not None
  capsys.readouterr()

  text = home / "text" / "file_0.py"
  with pytest.raises(ValueError, match="is no entropy model: .* by --entropy_model=own"):
    evaluate.main([f"--run={home / 'own'}", f"--data={text}"])
  flags = [f"--run={home / 'own'}", "--entropy_model=own"]
  evaluate.main([*flags, f"--data={text}"])
  found = json.loads(capsys.readouterr().out)
  assert found["bytes"] == text.stat().st_size and found["slotless_inputs"] == 0
  assert 0 < found["bpb"] < 20 and found["entropy_model"] == "own"
  with pytest.raises(ValueError, match="scored holds stored entropies, and .* on the device"):
    evaluate.main([*flags, f"--data={scores}"])

  # What is written has the patches that are shown.
  model = loading.load_language_model(home / "own", loading.OWN)
  (result,) = Generator(model, prefill_chunk=8).generate(["def f"], Sampling(max_bytes=8))
  patcher = loading.load_patcher(section, home / "own", loading.OWN)
  text = b"def f" + tokenizer.decode_bytes(result.ids)
  shown = show_patches.patch_by_itself(text, home / "own", patcher)
  count = len(shown.starts)
  np.testing.assert_array_equal(shown.starts, result.starts[:count])
  np.testing.assert_allclose(shown.entropies, result.entropies[:count], atol=1e-4)


# --- Bad input


@pytest.mark.parametrize(
  ("kind", "flags", "message"),
  [
    ("byte_lm", ["--entropy_model=own"], "--entropy_model is of a BLT, and .* is none"),
    ("byte_lm", ["--threshold=0"], "--threshold is of a BLT, and .* is none"),
    (
      "blt",
      ["--reset_at_newline"],
      "--reset_at_newline is of an entropy model, and .* is none",
    ),
    ("blt", ["--context=0"], "--context must be 1 bytes or more, got 0"),
  ],
)
def test_flags_of_other_models(home, tmp_path, kind, flags, message):
  names = [f"--model={home / kind}", f"--input={home / 'text'}", f"--output={tmp_path / 'x'}"]
  with pytest.raises(ValueError, match=message):
    score_entropies.main([*names, *flags])
  assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
  "rule",
  [
    PatchingConfig(scheme="bpe", delimiters=False),
    PatchingConfig(threshold=None, patch_size=4.0),
  ],
)
def test_patches_of_bytes_to_come_are_not_scored_under(rule):
  with pytest.raises(ValueError, match="patches of the run depend on bytes to come, so entr"):
    text_entropies.check(rule)


def test_models_without_patches_have_no_own_ones(home):
  with pytest.raises(ValueError, match="byte_lm reads no patches, so an entropy model"):
    loading.load_language_model(home / "byte_lm", loading.OWN)
  with pytest.raises(
    ValueError, match="blt is no entropy model: .* score_entropies has stored"
  ):
    calibrate.main([f"--run={home / 'blt'}"])


def test_the_cumulative_rule_at_inference(home):
  section = folder.load_config(home / "blt").patching
  rule = loading.load_patcher(section, "run", threshold=9.0, cumulative=True).config
  assert rule.cumulative and rule.threshold == 9
  with pytest.raises(ValueError, match="--cumulative is another rule .*: give its --threshold"):
    loading.load_patcher(section, "run", cumulative=True)
  with pytest.raises(
    ValueError, match="The patching of run is 'space', so .* would do nothing"
  ):
    section.scheme = "space"
    loading.load_patcher(section, "run", cumulative=True)


def test_scores_of_another_model_are_refused(home, scores):
  section = folder.load_config(home / "blt").patching
  with pytest.raises(ValueError, match="were made by .*blt at step 1, and .*byte_lm has other"):
    loading.load_patcher(section, home / "blt", data=str(scores))
