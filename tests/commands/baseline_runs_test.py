"""Runs of the baselines: trained, stopped and resumed, evaluated, generated from."""

import json

import chex
import jax
import numpy as np
import pytest
from golden_cases import FLOAT32
from three_steps import losses_of_three_steps
from tiny_runs import (
  logged_losses,
  losses,
  stopped_at_batch,
  tiny_config,
  write_text,
)

from blt_jax import evaluate, export, kinds, show_patches, train
from blt_jax.decode import Generator, Sampling
from blt_jax.runs import folder, loading

KINDS = ["megabyte", "spacebyte", "end_to_end"]


def _config(kind, text, workdir):
  config = tiny_config(kind, workdir=str(workdir), num_steps=8)
  config.data.update(path=str(text), heldout_fraction=0.2)
  config.optimizer.learning_rate = 1e-2
  config.schedule.warmup_steps = 2
  config.checkpoint.every_steps = 4
  if kind == "end_to_end":
    config.model.update(head="backward", skip=False, hash_sizes=())
  return config


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_from_training_to_generation(kind, tmp_path, monkeypatch, capsys):
  text = write_text(tmp_path / "text")
  workdir = tmp_path / "run"
  with stopped_at_batch(8, monkeypatch):
    train.train(_config(kind, text, workdir))
  numbers = train.train(_config(kind, text, workdir))
  assert len(list(logged_losses(workdir))) == 6 + 4  # steps 5 and 6 ran again, as before
  assert len(losses(workdir)) == 8
  patch_size = 4 if kind == "megabyte" else numbers["patch_size"]
  assert numbers["patch_size"] == pytest.approx(patch_size, rel=0.2) and patch_size > 2
  assert ("dropped_targets" in numbers) == (kind != "megabyte")
  assert ("slotless_inputs" in numbers) == (kind == "end_to_end")

  evaluate.main([f"--run={workdir}", f"--data={text / 'file_0.py'}"])
  found = json.loads(capsys.readouterr().out)
  assert 0 < found["bpb"] < 9
  if kind == "megabyte":  # which predicts every byte
    assert found["bytes"] == (text / "file_0.py").stat().st_size
  model = loading.load_language_model(workdir)
  (result,) = Generator(model, prefill_chunk=8).generate(["def f"], Sampling(max_bytes=8))
  assert 1 <= len(result.ids) <= 8
  if kind == "end_to_end":
    run = folder.load_run(workdir)
    _check_threshold(run, workdir)
    _check_text(run, result)


def _check_threshold(run, workdir):
  """It has moved in each step, less and less, and whoever reads the run has the last one."""
  seen = _thresholds(workdir)
  began, came_to = folder.load_config(workdir).model, run.model.config
  assert seen[0] == began.threshold
  moved = np.diff([*seen, came_to.threshold])
  assert (moved != 0).all()
  assert (abs(moved) <= began.threshold_rate * np.arange(8, 0, -1) / 8 + 1e-6).all()

  export.export(str(workdir), f"{workdir}_exported")
  exported = folder.load_run(f"{workdir}_exported")
  assert exported.model.config == came_to
  shown = show_patches.patch_inside("def f", exported)
  assert len(shown.starts) == 6 and shown.threshold == came_to.threshold
  others = shown.entropies[1:-1] > shown.threshold
  np.testing.assert_array_equal(shown.starts, [True, True, *others])


def _thresholds(workdir):
  """Of each step; one that ran again must have had the same."""
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  by_step: dict[int, float] = {}
  for line in lines:
    if line["kind"] == "train":
      now = line["extra/threshold"]
      assert by_step.setdefault(line["step"], now) == now
  return list(by_step.values())


def _check_text(run, result):
  """Each byte is the likeliest by the full forward pass, and as likely."""
  config = kinds.kind_of(run.model.config).unlimited(run.model.config)
  ids = np.concatenate([result.prompt, result.ids])
  forward = jax.jit(kinds.build_model(config).apply)
  logits = forward({"params": run.params}, ids[None])[0, len(result.prompt) - 1 : -1]
  np.testing.assert_array_equal(result.ids, logits.argmax(axis=1))
  chosen = np.asarray(jax.nn.log_softmax(logits))[np.arange(len(result.ids)), result.ids]
  chex.assert_trees_all_close(result.log_probs, chosen, **FLOAT32)


def _losses(kind, start=None, **mesh):
  """Losses of three steps on four devices, or on one; and the state that they began with."""
  config = tiny_config(kind)
  config.optimizer.learning_rate = 1e-2
  config.schedule.warmup_steps = 1
  config.mesh.update(mesh)
  lengths = np.ones((8, config.data.seq_len + 1), np.int32)
  return losses_of_three_steps(config, 4 if mesh else 1, lengths, start)[:2]


@pytest.mark.skipif(jax.device_count() < 4, reason="needs the fake devices of conftest.py")
@pytest.mark.parametrize("kind", KINDS)
def test_four_devices_learn_as_one(kind):
  alone, start = _losses(kind)
  assert alone[2] < alone[0]
  spread, _ = _losses(kind, start, data=1, fsdp=2, tensor=2)
  np.testing.assert_allclose(spread, alone, rtol=1e-5)


@pytest.mark.parametrize("seq_len", [30, 31])
def test_rows_of_whole_patches(seq_len, tmp_path):
  config = _config("megabyte", write_text(tmp_path / "text"), tmp_path / "run")
  config.data.seq_len = seq_len
  with pytest.raises(ValueError, match=f"seq_len {seq_len} must be a multiple of 4, the patch"):
    train.train(config)
  assert not (tmp_path / "run").exists()
