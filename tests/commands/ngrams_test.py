"""Frequency n-grams from the count to the trained run and back."""

import json
import shutil

import chex
import jax
import numpy as np
import pytest
from tiny_runs import losses, tiny_config, write_text

from blt_jax import count_ngrams, evaluate, export, hashing, patching, tokenizer, train
from blt_jax.data.transforms import LookUpNgrams
from blt_jax.decode.scoring import Scorer
from blt_jax.entropy import frequent_ngrams
from blt_jax.runs import folder as runs
from blt_jax.runs import loading, ngrams


@pytest.fixture(scope="module", name="home")
def _home(tmp_path_factory):
  """Text, its tables, and a run that trained with them."""
  home = tmp_path_factory.mktemp("ngrams")
  text = write_text(home / "text")
  command = [f"--input={text}", "--sizes=2,3", "--rows=40"]
  count_ngrams.main([*command, f"--output={home / 'tables'}"])
  train.train(configure(home, "run"))
  return home


def configure(home, name, kind="blt", **changes):
  config = tiny_config(kind, workdir=str(home / name), num_steps=4)
  config.patching.scheme = "space" if kind == "blt" else config.patching.scheme
  config.data.update(
    path=str(home / "text"), heldout_fraction=0.2, ngram_tables=str(home / "tables")
  )
  config.checkpoint.every_steps = 2
  config.update(changes)
  return config


def test_the_model_has_a_row_for_each_ngram(home):
  run = runs.load_run(home / "run")
  assert tuple(run.config.model.ngram_vocab_sizes) == (44, 44)
  assert run.params["embedder"]["ngrams_1"]["embedding"].shape == (44, 16)


def test_embeddings_of_ngrams_learn(home):
  first, last = (
    np.asarray(runs.load_run(home / "run", step).params["embedder"]["ngrams_0"]["embedding"])
    for step in (2, 4)
  )
  assert (first[hashing.TABLE_OFFSET :] != last[hashing.TABLE_OFFSET :]).any()


def test_a_resumed_run_needs_its_own_copy_alone(home, tmp_path):
  for part in ("run", "text"):
    shutil.copytree(home / part, tmp_path / part)
  shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
  config = configure(tmp_path, "run")
  config.data.update(ngram_tables="", path=str(home / "text"))
  train.train(config)
  assert losses(tmp_path / "run") == losses(home / "run")


def test_rows_of_ids_are_those_of_their_tokens_on_several_devices(home):
  config = configure(home, "shared")
  config.mesh.update(data=2, fsdp=2, tensor=2)
  config.optimizer.accumulate = 2
  train.train(config)
  chex.assert_trees_all_close(losses(home / "shared"), losses(home / "run"), rtol=1e-5)


@pytest.mark.parametrize("kind", ["blt", "end_to_end"])
def test_evaluate_and_scorer_find_the_tables_in_the_run(kind, home, capsys):
  workdir = home / "run"
  if kind != "blt":
    workdir = home / kind
    config = configure(home, kind, kind)
    config.model.num_patches = None  # slots for all, as reading has
    train.train(config)
  run, text = runs.load_run(workdir), b"def function_3_1(x):"
  (home / "text.txt").write_bytes(text)
  evaluate.main([f"--run={workdir}", f"--data={home / 'text.txt'}"])
  numbers = json.loads(capsys.readouterr().out)
  ids = tokenizer.encode(text, add_eos=False)[None]
  batch = LookUpNgrams(ngrams.load(workdir, run.config.model), True)({"tokens": ids})
  lengths = patching.patch_lengths(ids, patching.PatchingConfig(scheme="space"))
  logits = run.model.apply({"params": run.params}, ids, lengths, batch["ngram_ids"])
  chances = jax.nn.log_softmax(logits[0])
  of_text = chances[np.arange(len(text)), ids[0, 1:]].sum()
  end = chances[-1, tokenizer.EOS_ID]
  np.testing.assert_allclose(numbers["loss"] * (len(text) + 1), -of_text - end, rtol=1e-5)
  export.export(str(workdir), f"{workdir}_exported")
  (score,) = Scorer(loading.load_language_model(f"{workdir}_exported")).loglikelihood(
    [("", text)]
  )
  np.testing.assert_allclose(score.log_prob, of_text, rtol=1e-5)


def test_mistakes_are_named(home, tmp_path):
  def resolve(**changes):
    config = configure(home, "other")
    for name, value in changes.items():
      config[name].update(value)
    train.train(config)

  with pytest.raises(FileNotFoundError, match="holds no n-gram tables"):
    resolve(data={"ngram_tables": str(tmp_path)})
  with pytest.raises(ValueError, match=r"embeddings of \(44,\) rows.*\{2: 44, 3: 44\}"):
    resolve(model={"ngram_vocab_sizes": (44,)})
  with pytest.raises(ValueError, match=r"\(9,\) needs n-grams.*count_ngrams"):
    resolve(model={"ngram_vocab_sizes": (9,)}, data={"ngram_tables": ""})
  config = tiny_config("byte_lm", workdir=str(tmp_path / "lm"))
  config.data.ngram_tables = str(home / "tables")
  with pytest.raises(ValueError, match="would do nothing: a byte_lm has no n-gram"):
    train.train(config)
  others = frequent_ngrams.NgramCounter([2, 3])
  others.add([b"quite another text"])
  frequent_ngrams.save(tmp_path / "others", others.most_frequent(40))
  config = configure(home, "run")
  config.data.ngram_tables = str(tmp_path / "others")
  with pytest.raises(ValueError, match="began with other n-gram tables"):
    train.train(config)
  model = runs.load_config(home / "run").model
  with pytest.raises(FileNotFoundError, match="no n-gram tables"):
    ngrams.load(tmp_path, model)


@pytest.mark.parametrize(
  "flag",
  ["--sizes=3,2", "--sizes=9", "--sizes=", "--rows=0", "--max_ngrams=0", "--max_bytes=0"],
)
def test_flags_out_of_range(home, tmp_path, flag):
  with pytest.raises(ValueError, match=flag.partition("=")[0]):
    count_ngrams.main([f"--input={home / 'text'}", f"--output={tmp_path / 'out'}", flag])
  assert not (tmp_path / "out").exists()


def test_what_is_there_stays(home):
  with pytest.raises(ValueError, match="is not empty"):
    count_ngrams.main([f"--input={home / 'text'}", f"--output={home / 'tables'}"])
