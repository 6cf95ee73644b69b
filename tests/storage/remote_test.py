"""What commands and runs write goes to a URL as it goes to a folder, and is read from there."""

import json
import pickle

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import GOLDEN

from blt_jax import calibrate, convert, train_table
from blt_jax.entropy import table
from blt_jax.runs import checkpoint, metrics
from blt_jax.runs.loss_guard import LossGuard
from blt_jax.runs.profiling import Profiled
from blt_jax.storage import files
from blt_jax.storage.folders import Folder


@pytest.fixture(autouse=True)
def _no_folder_of_that_name(tmp_path, monkeypatch):
  """Whatever makes a folder `memory:` of a URL makes it here."""
  (tmp_path / "here").mkdir()
  monkeypatch.chdir(tmp_path / "here")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  fsspec.filesystem("memory").store.clear()
  yield
  assert not list((tmp_path / "here").iterdir())


def test_a_table_is_made_calibrated_and_read():
  text = "".join(json.dumps({"text": f"document {i} and more"}) + "\n" for i in range(80))
  fsspec.filesystem("memory").pipe_file("/text/a.jsonl", text.encode())
  made = ["--input=memory://text", "--orders=1,2", "--buckets=512"]
  for output in ("memory://out/table", "memory://out/again"):
    train_table.main([*made, f"--output={output}"])
  with pytest.raises(ValueError, match="exists; remove it"):
    train_table.main([*made, "--output=memory://out/table"])
  calibrate.main(["--run=memory://out/table", "--target_bytes_per_patch=3"])
  home = Folder("memory://out/table")
  assert list(home.sizes()) == ["entries.npy", "table.json", "threshold.json"]
  assert home.read_json("threshold.json")["threshold"] > 0
  one, again = (table.TableModel(f"memory://out/{name}") for name in ("table", "again"))
  tokens = np.arange(4, 200, dtype=np.int32)
  np.testing.assert_array_equal(one(tokens), again(tokens))
  np.testing.assert_array_equal(pickle.loads(pickle.dumps(one))(tokens), one(tokens))
  home.remove("entries.npy")
  with pytest.raises(ValueError, match="entries.npy is missing; train it anew"):
    table.TableModel("memory://out/table")


def test_a_table_that_was_left_unfinished_is_made_again():
  home = Folder("memory://unfinished")
  with home.new_file("entries.npy") as path:
    path.write_bytes(b"of a process that was killed")
  assert table.is_free(home.path) and not table.is_table(home.path)
  home.write_json("notes.json", {})
  assert not table.is_free(home.path)


def test_lines_go_on_where_they_stopped():
  for step in (1, 2):
    writer = metrics.MetricWriter("memory://run", use_tensorboard=step == 2)
    writer.write(step, "train", {"loss": 2.0})
    writer.write(step, "eval", {"loss": 2.5})
    writer.close()
  lines = [json.loads(x) for x in files.read_bytes("memory://run/metrics.jsonl").splitlines()]
  assert [(n["step"], n["kind"]) for n in lines] == [
    (1, "train"), (1, "eval"), (2, "train"), (2, "eval")
  ]  # fmt: skip
  (events,) = (name for name in Folder("memory://run").sizes() if name.startswith("events"))
  assert b"train/loss" in files.read_bytes(f"memory://run/{events}")


def test_lines_are_uploaded_while_a_run_goes_on(monkeypatch):
  monkeypatch.setattr(metrics, "_UPLOAD_SECONDS", -1)
  writer = metrics.MetricWriter("memory://running", use_tensorboard=False)
  writer.write(1, "train", {"loss": 2.0})
  assert files.read_json("memory://running/metrics.jsonl")["loss"] == 2.0
  writer.close()


def test_a_bad_batch_is_kept():
  guard = LossGuard("memory://bad", max_jump=1.0)
  sums = {"nats": np.nan, "targets": 1.0, "grad_norm": 1.0}
  message = "memory://bad/bad_batch_2_process_0.npz, and no"
  with pytest.raises(FloatingPointError, match=message):
    guard.check(2, sums, {"tokens": jnp.ones((2, 3))})
  with np.load(files.copy_here("memory://bad/bad_batch_2_process_0.npz")) as saved:
    np.testing.assert_array_equal(saved["tokens"], np.ones((2, 3)))


def test_steps_are_traced():
  step = Profiled(jax.jit(lambda x: x + 1), "memory://run/profile", start=1, steps=1)
  step(1, jnp.zeros(()))
  assert sum(name.endswith(".xplane.pb") for name in files.list_files("memory://run")) == 1


def test_weights_in_the_layout_of_others():
  ours = convert.from_hf(GOLDEN / "hf_tiny")
  convert.to_hf("memory://hf", ours)
  jax.tree.map(
    np.testing.assert_array_equal, convert.from_hf("memory://hf").params, ours.params
  )
  with pytest.raises(FileExistsError, match="memory://hf/model.safetensors exists"):
    convert.to_hf("memory://hf", ours)


def test_checkpoints_say_where_they_can_lie():
  with pytest.raises(ValueError, match="memory://run can hold no checkpoints; .* gs://"):
    checkpoint.find_step("memory://run")
