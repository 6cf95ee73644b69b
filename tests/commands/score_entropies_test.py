"""Stored entropies: what they hold, how they resume, and what damages them."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import fsspec
import numpy as np
import pyarrow
import pytest
from golden_cases import SAME
from pyarrow import parquet
from tiny_runs import small_files, tiny_config

from blt_jax import calibrate, evaluate, score_entropies, tokenizer, train, train_table
from blt_jax.data.reading import scored, shards, sources
from blt_jax.data.reading.documents import Document, Skipped, SourceOptions
from blt_jax.entropy.neural import EntropyScorer
from blt_jax.runs import folder as runs
from blt_jax.runs import patcher

_TEXTS = [f"document {i}: " + "lorem ipsum\n" * (i % 7) for i in range(60)] + ["", "x"]


@pytest.fixture(scope="module", name="model")
def _model(tmp_path_factory):
  """A trained entropy model, tiny, and a text to score."""
  folder = tmp_path_factory.mktemp("model")
  lines = [json.dumps({"text": text}) for text in _TEXTS]
  (folder / "text.jsonl").write_text("\n".join(lines) + "\n")
  train.train(_config("byte_lm", folder, folder / "entropy"))
  return folder


def _config(kind, folder, workdir):
  config = tiny_config(kind, workdir=str(workdir), num_steps=3)
  config.data.update(path=str(folder / "text.jsonl"), heldout_fraction=0.1, pool_size=8)
  return config


def _flags(model, output, *more):
  return [
    f"--model={model / 'entropy'}", f"--input={model / 'text.jsonl'}", f"--output={output}",
    "--num_lanes=2", "--chunk_length=64", *more,
  ]  # fmt: skip


def _score(model, output, *more):
  score_entropies.main(_flags(model, output, *more))
  return output


def _read(folder):
  reader = scored.ScoredReader(folder)
  return [reader[i] for i in range(len(reader))]


@pytest.fixture(scope="module", name="whole")
def _whole(model, tmp_path_factory):
  output = tmp_path_factory.mktemp("scored") / "whole"
  return _score(model, output, "--dtype=float32", "--shard_megabytes=0.0005")


def test_entropies_are_those_of_each_document(model, whole):
  documents = _read(whole)
  assert [d.text.decode() for d in documents] == _TEXTS
  scorer = EntropyScorer(*runs.load_entropy_model(model / "entropy"))
  for document in documents:
    expected = scorer(tokenizer.encode(document.text))
    np.testing.assert_allclose(document.entropies, expected, **SAME)


def test_several_processes_share_the_work(model, whole, tmp_path):
  output = tmp_path / "shared"
  for process in (1, 0):
    with pytest.raises((ValueError, FileNotFoundError)):
      scored.ScoredReader(output)
    _score(model, output, "--dtype=float32", "--num_processes=2", f"--process={process}")
  by_text = {d.text: d.entropies for d in _read(whole)}
  documents = _read(output)
  assert sorted(d.text for d in documents) == sorted(by_text)
  for document in documents:
    np.testing.assert_allclose(document.entropies, by_text[document.text], **SAME)


def test_killed_ten_times_and_resumed_is_the_same(model, whole, tmp_path):
  output, rng = tmp_path / "killed", np.random.default_rng(0)
  command = [sys.executable, "-m", "blt_jax.score_entropies", *_flags(model, output)]
  command += ["--dtype=float32", "--shard_megabytes=0.0005"]
  kills = 0
  while kills < 10 and not shards.is_done(output, 0):
    written = len(list(output.glob("*.array_record")))
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while process.poll() is None:
      if len(list(output.glob("*.*"))) - 1 > 2 * written:  # it writes
        time.sleep(rng.uniform(0, 0.01))
        break
      time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kills += 1
  _score(model, output, "--dtype=float32", "--shard_megabytes=0.0005")
  assert kills >= 3  # a fast machine finishes before ten
  for got, expected in zip(_read(output), _read(whole), strict=True):
    assert got.text == expected.text
    np.testing.assert_array_equal(got.entropies, expected.entropies)


def test_from_text_to_a_trained_blt(model, tmp_path):
  output = _score(model, tmp_path / "scored")
  config = _config("blt", model, tmp_path / "blt")
  config.data.path = str(output)
  config.patching.scheme = "entropy"
  with pytest.raises(ValueError, match="holds stored entropies; set config.patching.entropies"):
    train.train(config)
  config.patching.entropies = "stored"
  calibrate.main([f"--run={output}", "--target_bytes_per_patch=3"])
  numbers = train.train(config)
  saved = runs.load_config(tmp_path / "blt").patching
  assert saved.entropy_model == str(model / "entropy") and saved.threshold is not None
  assert 2 < numbers["patch_size"] < 4.5
  evaluate.main([f"--run={tmp_path / 'blt'}", f"--data={output}"])
  evaluate.main([f"--run={tmp_path / 'blt'}", f"--data={model / 'text.jsonl'}"])


def test_stored_entropies_must_fit_the_run(model, whole, tmp_path):
  config = _config("blt", model, tmp_path / "blt")
  config.patching.update(scheme="entropy", entropies="stored")
  with pytest.raises(ValueError, match="holds no entropies; python -m blt_jax.score_entropies"):
    train.train(config)
  config.data.path = str(whole)
  config.patching.reset_at_newline = True
  with pytest.raises(ValueError, match="made with reset_at_newline=False"):
    train.train(config)
  config.patching.reset_at_newline = False
  other = _config("byte_lm", model, tmp_path / "other")
  other.seed = 1
  train.train(other)
  config.patching.entropy_model = str(tmp_path / "other")
  with pytest.raises(ValueError, match="has other parameters: score the text again"):
    train.train(config)
  assert not (tmp_path / "blt").exists()


def test_another_making_is_not_mixed_in(model, whole):
  before = sorted(p.name for p in pathlib.Path(whole).iterdir())
  with pytest.raises(
    ValueError, match="made otherwise: entropy_dtype 'float32', now 'float16'"
  ):
    _score(model, whole)
  assert sorted(p.name for p in pathlib.Path(whole).iterdir()) == before


@pytest.mark.parametrize("damage", ["cut", "shard", "sidecar", "half", "last"])
def test_what_is_missing_is_named_and_made_again(model, whole, tmp_path, damage):
  output = pathlib.Path(shutil.copytree(whole, tmp_path / "scored"))
  paths = sorted(output.glob("*.array_record"))
  shard = paths[-1 if damage == "last" else 2]
  if damage == "cut":
    os.truncate(shard, shard.stat().st_size // 2)
  elif damage == "half":
    shard.with_suffix(".json").write_text("{")
  else:
    shard.with_suffix(".json" if damage == "sidecar" else ".array_record").unlink()
  with pytest.raises(ValueError, match=f"{shard.name} is missing or damaged. Run the same"):
    sources.open_source(str(output))
  more = ("--dtype=float32", "--shard_megabytes=0.0008")  # shards after it are others
  _score(model, output, *more)
  assert len(list(output.glob("*.array_record"))) <= len(paths) - (damage != "last")
  for got, expected in zip(_read(output), _read(whole), strict=True):
    assert got.text == expected.text
    np.testing.assert_array_equal(got.entropies, expected.entropies)
  assert not list(output.glob("*.partial"))


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--text_field=other"], "text_field 'text', now 'other'"),
    (["--invalid_utf8=drop"], "invalid_utf8 'keep', now 'drop'"),
    ([], "input_files '1 files of .* bytes .*', now '1 files of"),
  ],
)
def test_another_reading_is_not_mixed_in(model, tmp_path, flags, message):
  text = tmp_path / "text.jsonl"
  text.write_text('{"text": "abc", "other": "def"}\n')
  _score(model, tmp_path / "scored", f"--input={text}")
  if not flags:
    text.write_text('{"text": "abc", "other": "defg"}\n')
  with pytest.raises(ValueError, match=f"made otherwise: {message}"):
    _score(model, tmp_path / "scored", f"--input={text}", *flags)


def test_other_files_are_left_alone(model, tmp_path):
  (tmp_path / "notes.txt").write_text("mine")
  with pytest.raises(ValueError, match="holds other files, such as notes.txt"):
    _score(model, tmp_path)
  with pytest.raises(NotADirectoryError, match="notes.txt is a file"):
    _score(model, tmp_path / "notes.txt")
  assert (tmp_path / "notes.txt").read_text() == "mine"


def test_shards_without_their_manifest_are_not_taken_for_text(whole, tmp_path):
  shutil.copytree(whole, tmp_path / "s")
  (tmp_path / "s" / "entropies.json").unlink()
  for path in (tmp_path, tmp_path / "s" / "00-00000.array_record"):
    with pytest.raises(ValueError, match="s holds stored entropies, and its entropies.json is"):
      sources.open_source(str(path))


def test_shards_without_their_folder_are_not_taken_for_text(whole):
  for path in (f"{whole}/*.array_record", f"{whole}/00-00000.array_record", str(whole.parent)):
    with pytest.raises(ValueError, match="stored entropies; give that folder itself"):
      sources.open_source(path)


def test_what_was_left_out_is_counted_over_all_starts(model, tmp_path, monkeypatch):
  text = tmp_path / "text.jsonl"
  text.write_text("".join('{"text": "a document"}\n{"text": 5}\n' for _ in range(6)))
  flags = [f"--input={text}", "--on_error=skip", "--shard_megabytes=0.00002"]
  write, written = shards.write_shard, []

  def fail_at_last(*arguments):
    if len(written) == 2:
      raise OSError("No space left on device")
    written.append(write(*arguments))

  with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
    patched.setattr(shards, "write_shard", fail_at_last)
    _score(model, tmp_path / "scored", *flags)
  _score(model, tmp_path / "scored", *flags)
  facts = json.loads((tmp_path / "scored" / "00-done.json").read_text())
  assert facts["documents"] == 6 and facts["skipped"] == {"no string in field 'text'": 6}


@pytest.mark.parametrize("end", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet"])
def test_the_time_left_is_known_for_every_format(end, model, tmp_path):
  source = tmp_path / f"text.{end}"
  texts = [f"document {i}" for i in range(100, 200)]
  if end == "parquet":
    parquet.write_table(pyarrow.table({"text": texts}), source)
  else:
    with fsspec.open(str(source), "wb", compression="infer") as file:
      file.write("".join(json.dumps({"text": text}) + "\n" for text in texts).encode())
  documents = sources.open_source(str(source))
  so_far = shards.Progress(1, 10, 10, 120)
  if end == "jsonl.gz":
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(source.read_bytes()[:-9])
    unknown = sources.open_source(str(cut), SourceOptions(on_error="skip"))
    assert score_entropies._estimate_total(unknown, 2, so_far) is None
  assert score_entropies._estimate_total(documents, 2, so_far) == pytest.approx(600, abs=1)


def test_records_check_their_lengths():
  record = shards.encode(Document(b"abc", np.arange(5, dtype=np.float32)), "float16")
  document = shards.decode(record, "float16")
  assert document.text == b"abc" and document.entropies.tolist() == [0, 1, 2, 3, 4]
  for bad in (record[:-2], record + b"xx"):
    with pytest.raises(ValueError, match="score the text again"):
      shards.decode(bad, "float16")


def test_a_record_that_cannot_be_read_stops_or_is_counted(model, tmp_path):
  """As where somebody changed bytes, so that sizes alone tell nothing."""
  output = _score(model, tmp_path / "scored")
  shard = next(output.glob("*.array_record"))
  raw = shard.read_bytes()
  shard.write_bytes(raw.replace(b"document 7:", b"DOCUMENT 7:"))
  reader = sources.open_source(str(output))
  with pytest.raises(ValueError, match=f"{output}, record 7: cannot be read"):
    list(reader)
  skipped = Skipped()
  texts = [
    d.text for d in sources.open_source(str(output), SourceOptions(on_error="skip"), skipped)
  ]
  assert len(texts) == len(_TEXTS) - 1 and skipped.counts == {"cannot be read": 1}


def test_shards_of_the_right_size_are_looked_into(whole, model, tmp_path):
  output = pathlib.Path(shutil.copytree(whole, tmp_path / "scored"))
  shard = output / "00-00001.array_record"
  shutil.copy(shard, output / "07-00000.array_record")  # of nobody
  assert len(_read(output)) == len(_TEXTS)
  shard.write_bytes(bytes(shard.stat().st_size))
  with pytest.raises(ValueError, match="00-00001.array_record is damaged.*Remove it"):
    sources.open_source(str(output))
  shard.unlink()
  _score(model, output, "--dtype=float32", "--shard_megabytes=0.0005")
  assert [d.text for d in _read(output)] == [d.text for d in _read(whole)]
  (output / "00-done.json").write_text("{}")
  with pytest.raises(ValueError, match="is not finished"):
    sources.open_source(str(output))
  _score(model, output, "--dtype=float32", "--shard_megabytes=0.0005")
  assert len(_read(output)) == len(_TEXTS)


def test_a_remote_folder_goes_on_where_it_stopped(model, whole, tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  output, more = "memory://scored/deep", ("--dtype=float32", "--shard_megabytes=0.0005")
  _score(model, output, *more)
  memory = fsspec.filesystem("memory")
  sidecars = [f for f in memory.ls("/scored/deep", detail=False) if "-0" in f and "json" in f]
  for file in ("/scored/deep/00-done.json", *sorted(sidecars)[3:]):
    memory.rm(file)
  with pytest.raises(ValueError, match="is not finished"):
    sources.open_source(output)
  memory.pipe_file(sorted(sidecars)[3].replace(".json", ".array_record"), b"half")
  _score(model, output, *more)
  for got, expected in zip(_read(output), _read(whole), strict=True):
    assert got.text == expected.text
    np.testing.assert_array_equal(got.entropies, expected.entropies)


def test_a_failed_write_leaves_no_shard(tmp_path):
  def documents():
    yield Document(b"a", np.zeros(3))
    raise OSError("No space left on device")

  with pytest.raises(OSError, match="No space left"):
    shards.write_shard(tmp_path, 0, documents(), "float16", shards.Progress(1, 1, 1, 1))
  assert not list(tmp_path.iterdir())
  with pytest.raises(OSError, match="No space left"):
    shards.write_shard("memory://full", 0, documents(), "float16", shards.Progress(1, 1, 1, 1))
  assert not fsspec.filesystem("memory").exists("/full")


def test_a_disk_without_room_is_an_error_that_says_so(tmp_path):
  documents = [Document(os.urandom(50_000), np.zeros(50_002))] * 2
  message = r"cannot be written: .* Check free space"
  with pytest.raises(OSError, match=message), small_files(100_000):
    shards.write_shard(tmp_path, 0, documents, "float16", shards.Progress(1, 2, 2, 100_000))
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--process=2", "--num_processes=2"], "--process must be in"),
    (["--shard_megabytes=0"], "--shard_megabytes must be above 0"),
    (["--shard_megabytes=nan"], "--shard_megabytes must be above 0"),
    (["--num_lanes=-1"], "--num_lanes must be 1 or more"),
    (["--chunk_length=0"], "--chunk_length must be 1 or more"),
  ],
)
def test_mistakes_are_named(model, tmp_path, flags, message):
  with pytest.raises(ValueError, match=message):
    _score(model, tmp_path / "scored", *flags)


def test_a_table_stores_nothing(model, tmp_path):
  table = tmp_path / "table"
  train_table.main([f"--input={model / 'text.jsonl'}", f"--output={table}"])
  with pytest.raises(ValueError, match="table is a table, of which nothing is stored"):
    _score(model, tmp_path / "scored", f"--model={table}")
  assert not (tmp_path / "scored").exists()


def test_digest_tells_parameters_apart():
  params = {"a": np.zeros(3, np.float32), "b": np.ones(2, np.float32)}
  assert patcher.params_digest(params) == patcher.params_digest(dict(params))
  assert patcher.params_digest(params) != patcher.params_digest(params | {"a": np.ones(3)})
