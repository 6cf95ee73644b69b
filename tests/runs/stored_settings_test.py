"""`config.json`: moved with what belongs to the run, of an earlier version, edited, foreign."""

import json
import shutil

import pytest
from absl import logging
from tiny_runs import tiny_config

from blt_jax.runs import folder
from blt_jax.runs.patcher import load_patcher
from blt_jax.storage import paths


def _config(workdir, entropy_model="", **values):
  config = tiny_config("blt", workdir=str(workdir))
  config.patching.entropy_model = str(entropy_model)
  config.update_from_flattened_dict(values)
  return config


def _entropy_model(path):
  config = tiny_config("byte_lm", workdir=str(path))
  folder.save_config(path, config)
  return path


def _found(workdir):
  return folder.load_config(workdir).patching.entropy_model


# --- Where the entropy model is


@pytest.mark.parametrize("place", ["runs/entropy", "entropy", "runs/deep/entropy"])
@pytest.mark.parametrize("as_given", ["relative", "whole"])
def test_an_entropy_model_is_found_from_everywhere(place, as_given, tmp_path, monkeypatch):
  (tmp_path / "old/runs").mkdir(parents=True)
  monkeypatch.chdir(tmp_path / "old")
  model = _entropy_model(tmp_path / "old" / place)
  folder.save_config(
    "runs/blt", _config("runs/blt", place if as_given == "relative" else model)
  )
  assert _found("runs/blt") == str(model)
  monkeypatch.chdir(tmp_path)  # another folder
  assert _found("old/runs/blt") == str(model)
  (tmp_path / "old").rename(tmp_path / "new")  # moved together
  assert _found(tmp_path / "new/runs/blt") == str(tmp_path / "new" / place)
  (tmp_path / "new").rename(tmp_path / "old")
  (tmp_path / "alone").mkdir()
  (tmp_path / "old/runs/blt").rename(tmp_path / "alone/blt")  # moved without it
  assert _found("alone/blt") == str(model)


def test_what_a_run_keeps_is_relative_to_it(tmp_path):
  model = _entropy_model(tmp_path / "runs/entropy")
  folder.save_config(tmp_path / "runs/blt", _config(tmp_path / "runs/blt", model))
  stored = json.loads((tmp_path / "runs/blt/config.json").read_text())
  assert stored["patching"]["entropy_model"] == "../entropy"
  (tmp_path / "deep").mkdir()  # as export does
  folder.save_config(
    tmp_path / "deep/out", folder.load_config(tmp_path / "runs/blt"), tmp_path / "out"
  )
  (tmp_path / "deep/out").rename(tmp_path / "out")
  assert _found(tmp_path / "out") == str(model)


def test_runs_of_before_are_found_after_a_move(tmp_path, monkeypatch):
  _entropy_model(tmp_path / "new/entropy")
  folder.save_config(tmp_path / "new/blt", _config("old/blt"))
  path = tmp_path / "new/blt/config.json"
  stored = json.loads(path.read_text())
  del stored["folder"]
  stored["patching"]["entropy_model"] = "old/entropy"
  path.write_text(json.dumps(stored))
  monkeypatch.chdir(tmp_path)
  assert _found("new/blt") == str(tmp_path / "new/entropy")
  shutil.move(tmp_path / "new", tmp_path / "old")
  assert _found("old/blt") == "old/entropy"


def test_a_lost_one_is_named(tmp_path):
  folder.save_config(tmp_path / "blt", _config(tmp_path / "blt", tmp_path / "gone"))
  with pytest.raises(FileNotFoundError, match=f"{tmp_path}/gone holds no run"):
    load_patcher(folder.load_config(tmp_path / "blt").patching)


@pytest.mark.parametrize(
  ("path", "start", "relative"),
  [
    ("gs://b/runs/entropy", "gs://b/runs/blt", "../entropy"),
    ("gs://a/entropy", "gs://b/blt", "gs://a/entropy"),
    ("/a/entropy", "gs://b/blt", "/a/entropy"),
    ("/a/b/../entropy/", "/a/blt", "../entropy"),
    ("/", "/a/blt", "../.."),
  ],
)
def test_paths_are_seen_from_folders_and_back(path, start, relative):
  assert paths.relative(path, start) == relative
  assert paths.join(start, relative) == paths.absolute(path)


# --- Earlier, edited, foreign


def _edit(tmp_path, change):
  folder.save_config(tmp_path, _config(tmp_path))
  path = tmp_path / "config.json"
  stored = json.loads(path.read_text())
  change(stored)
  path.write_text(json.dumps(stored))


def test_what_an_earlier_version_did_not_know_is_at_its_default_and_said(tmp_path, caplog):
  logging.set_verbosity(logging.INFO)

  def forget(stored):
    del stored["data"]["pool_bytes"], stored["model"]["hash_document_masks"], stored["eval"]

  _edit(tmp_path, forget)
  loaded = folder.load_config(tmp_path)
  assert loaded.data.pool_bytes is None and loaded.eval.every_steps == 1000
  assert loaded.model.hash_document_masks is False  # as it was then
  assert "config.data.pool_bytes=None" in caplog.text and "hash_document" not in caplog.text


def _set(name, value):
  def change(stored):
    *sections, last = name.split(".")
    for section in sections:
      stored = stored[section]
    stored[last] = value

  return change


_WRONG = {
  "empty": (dict.clear, "config.data is no section"),
  "foreign": (lambda s: [s.clear(), s.update(hidden_size=3)], "holds no settings of a run"),
  "a section": (_set("model", [1]), "config.model is no section"),
  "a stack": (_set("model.latent", 3), "config.model.latent is 3; it must be a section"),
  "no kind": (lambda s: s["model"].pop("kind"), "config.model.kind is 'None'"),
  "kind": (_set("model.kind", "gpt"), "config.model.kind is 'gpt'"),
  "kind's type": (_set("model.kind", ["blt"]), "config.model.kind is "),
  "text": (
    _set("data.batch_size", "8"),
    "config.data.batch_size is '8'; it must be of",
  ),
  "bool": (_set("data.batch_size", True), "batch_size is True; it must be of type int"),
  "null": (_set("data.seq_len", None), "seq_len is None; it must be of type int"),
  "bounds": (_set("data.seq_len", -1), r"seq_len is -1; it must lie in \[2"),
  "name": (_set("patching.scheme", "words"), "scheme is 'words'; it must be one of"),
  "not a number": (_set("optimizer.learning_rate", float("nan")), "a number is NaN"),
  "array": (_set("model.hash_sizes", [3, "x"]), "hash_sizes is .*; it must hold whole numbers"),
  "mixture": (_set("data.mixture", {"web": "x"}), "data.mixture is .*; it must be name: "),
  "misspelt": (_set("model.latent.dxm", 3), "config.model.latent.dxm is no setting"),
  "no optimizer": (_set("optimizer", None), "config.optimizer is None; it must be a section"),
  "path": (_set("patching.entropy_model", 5), "entropy_model is 5; it must be of type str"),
}


@pytest.mark.parametrize("name", _WRONG)
def test_wrong_settings_are_one_clear_error(name, tmp_path):
  change, message = _WRONG[name]
  _edit(tmp_path, change)
  with pytest.raises(ValueError, match=f"{tmp_path}/config.json.*{message}") as error:
    folder.load_config(tmp_path)
  assert "\n" not in str(error.value)
