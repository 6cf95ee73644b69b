"""Runs that patch on the device, by an entropy model in the step or by a boundary head."""

import json

import jax
import numpy as np
import pytest
from three_steps import losses_of_three_steps
from tiny_runs import losses, tiny_config, write_text
from uncached import random_params

from blt_jax import config as settings
from blt_jax import evaluate, kinds, score_entropies, show_patches, train
from blt_jax.data.reading import scored
from blt_jax.decode import Generator, Sampling
from blt_jax.parallel import sharding
from blt_jax.runs import (
  bounds,
  device_entropies,
  folder,
  loading,
  program,
  resolve,
  stored_params,
)

WIDTH = 16


pytestmark = pytest.mark.skipif(
  jax.device_count() < 8, reason="needs the fake devices of conftest.py"
)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
  """Text, and the run of an entropy model, whose parameters are random."""
  path = tmp_path_factory.mktemp("device")
  write_text(path / "text")
  config = tiny_config("byte_lm", workdir=str(path / "entropy"))
  params = random_params(settings.make_model_config(config.model))
  params["output"]["kernel"] *= 3
  stored_params.save(config.workdir, 1, params, config)
  folder.save_config(config.workdir, config)
  rows = [{"context": "def f", "choices": ["unction", "x"], "label": 0}] * 3
  (path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def _config(home, has_head=False):
  name = "head" if has_head else "run"
  config = tiny_config("blt", workdir=str(home / name), num_steps=4)
  config.data.update(path=str(home / "text"), heldout_fraction=0.2, num_patches=16)
  for name in ("encoder", "latent", "decoder"):
    config.model[name].unroll = True  # compiles faster
  config.model.hash_sizes = ()  # likewise
  config.patching.update(entropy_model=str(home / "entropy"), threshold=3.0)
  if has_head:
    config.data.path = str(home / "scored")
    config.patching.entropies = "stored"
    config.model.boundary_weight = 1.0
  else:
    config.patching.entropies = "device"
    config.model.entropy_state_dim = WIDTH
  config.optimizer.learning_rate = 1e-2
  config.schedule.warmup_steps = 1
  config.optimizer.accumulate = 2
  config.checkpoint.every_steps = 2
  config.mesh.update(data=2, fsdp=2, tensor=2)
  return config


def test_a_run_from_training_to_generation(home, capsys):
  config = _config(home)
  config.eval.update(tasks="own", task_data=str(home))
  numbers = train.train(config)
  assert len(losses(home / "run")) == 4 and 0 <= numbers["own/acc"] <= 1
  assert 1.2 < numbers["patch_size"] < 4
  assert 0 < numbers["cut_inputs"] < 1 and 0 <= numbers["slotless_inputs"] < 0.5

  evaluate.main([f"--run={home / 'run'}", f"--data={home / 'text' / 'file_0.py'}"])
  found = json.loads(capsys.readouterr().out)
  assert found["bytes"] == (home / "text" / "file_0.py").stat().st_size  # slots for all
  assert 0 < found["bpb"] < 9 and found["slotless_inputs"] == 0

  generator = Generator(loading.load_language_model(home / "run"), prefill_chunk=8)
  (result,) = generator.generate(["def f"], Sampling(max_bytes=8))
  patcher = loading.load_patcher(folder.load_config(home / "run").patching, home / "run")
  shown = show_patches.patch_text("def f", patcher)
  np.testing.assert_array_equal(shown.starts, result.starts[:6])
  assert len(result.ids) <= 8 and not shown.starts.all()


def test_a_run_with_a_boundary_head(home, capsys):
  text, workdir = home / "text", home / "head"
  flags = [f"--model={home / 'entropy'}", f"--input={text}", f"--output={home / 'scored'}"]
  score_entropies.main(flags)
  numbers = train.train(_config(home, has_head=True))
  assert 0.2 < numbers["boundary_agreement"] <= 1 and 0 <= numbers["boundary_recall"] <= 1
  assert 0 < numbers["boundary_loss"] < 3

  flags = [f"--run={workdir}", "--entropy_model=head"]
  evaluate.main([*flags, f"--data={text / 'file_0.py'}"])
  found = json.loads(capsys.readouterr().out)
  assert found["bytes"] == (text / "file_0.py").stat().st_size
  assert 0 < found["bpb"] < 9 and found["entropy_model"] == "head"
  assert found["threshold"] == 0
  evaluate.main([*flags, f"--data={text / 'file_0.py'}", "--threshold=-100"])
  every_byte = json.loads(capsys.readouterr().out)
  assert every_byte["patch_size"] == 1 < found["patch_size"] and every_byte["threshold"] == -100
  with pytest.raises(ValueError, match="scored holds stored entropies, and .* on the device"):
    evaluate.main([*flags, f"--data={home / 'scored'}"])
  with pytest.raises(ValueError, match="head sums nothing up: leave --cumulative out"):
    loading.load_language_model(workdir, loading.HEAD, cumulative=True, threshold=1.0)

  model = loading.load_language_model(workdir, loading.HEAD, threshold=-100.0)
  (result,) = Generator(model, prefill_chunk=8).generate(["def f"], Sampling(max_bytes=4))
  assert result.starts.all()
  generator = Generator(loading.load_language_model(workdir, loading.HEAD), prefill_chunk=8)
  (result,) = generator.generate(["def f"], Sampling(max_bytes=8))
  section = folder.load_config(workdir).patching
  patcher = loading.load_patcher(section, workdir, loading.HEAD)
  shown = show_patches.patch_by_itself("def f", workdir, patcher)
  np.testing.assert_array_equal(shown.starts, result.starts[:6])


# --- The step


def _losses(home, has_head, num_devices, start=None):
  """Losses of three steps, and the states before and after."""
  config = _config(home, has_head)
  if num_devices == 1:
    config.mesh.update(data=1, fsdp=1, tensor=1)
  lengths = np.zeros((8, config.data.num_patches), np.int32)
  lengths[:, :12] = [1, *[3] * 10, 2]
  return losses_of_three_steps(config, num_devices, lengths, start)


@pytest.mark.parametrize("has_head", [False, True])
def test_eight_devices_learn_as_one(has_head, home):
  """Matrices of states begin at zero and learn; the entropy model is no part of the state."""
  alone, start, end = _losses(home, has_head, 1)
  assert alone[2] < alone[0]
  spread, *_ = _losses(home, has_head, 8, start)
  np.testing.assert_allclose(spread, alone, rtol=1e-5)
  if has_head:
    assert end.params["boundary_head"]["bias"] != start.params["boundary_head"]["bias"]
    return
  for name in ("states_to_encoder", "states_to_decoder"):
    assert not start.params[name]["kernel"].any() and end.params[name]["kernel"].all()
  assert not any("entropy" in name for name in start.params)


# --- Bad input


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"patching.entropy_model": ""}, "runs an entropy model in the step: set .*entropy_model"),
    ({"patching.entropy_model": "nowhere"}, "nowhere holds no run"),
    ({"patching.entropies": "model"}, "entropy_state_dim=16 wants .* entropies='device'"),
    ({"patching.scheme": "space"}, "dim=16 wants .*: set config.patching.scheme='entropy'"),
    ({"model.entropy_state_dim": 8}, "is 8, and the states of the entropy model have width 16"),
    ({"patching.threshold": None, "patching.patch_size": 4.0}, "'device' needs a threshold"),
  ],
)
def test_settings_that_do_not_go_together(home, changes, message):
  config = _config(home)
  config.update_from_flattened_dict(changes)
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    program.make_program(config)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"patching.entropies": "model"}, "boundary_weight=1.0 has a head learn .* stored entr"),
    ({"patching.scheme": "static"}, "boundary_weight=1.0 has a head learn .* stored entr"),
    ({"patching.entropies": "head"}, "'head' is for reading a run, by --entropy_model=head"),
  ],
)
def test_a_head_learns_from_stored_entropies_alone(home, changes, message):
  config = _config(home, has_head=True)
  bounds.check(config)
  config.update_from_flattened_dict(changes)
  with pytest.raises(ValueError, match=message):
    bounds.check(config)


def test_a_run_without_a_head_is_not_read_by_one(home):
  section = _config(home).patching
  patcher = loading.load_patcher(section, "run", loading.HEAD)
  model = kinds.build_model(kinds.KINDS["blt"].tiny())
  with pytest.raises(ValueError, match="The model has no boundary head to patch by; train one"):
    device_entropies.attach_loaded(model, patcher, sharding.make_mesh())


def test_stored_entropies_are_not_measured_again(home):
  sizes = 512, "float32", "float32", False, "text", 1
  stored = [("scored", scored.Manifest("model", 1, "digest", *sizes))]
  with pytest.raises(ValueError, match="is 'device' and scored holds stored entropies; set"):
    resolve.resolve_patching(_config(home).patching, stored)
