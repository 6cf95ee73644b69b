"""A run of several resolutions, from its entropies to what it generates."""

import json

import jax
import numpy as np
import pytest
from tiny_runs import losses, tiny_config, write_text

from blt_jax import calibrate, evaluate, show_patches, train, train_table
from blt_jax.cli import patch_view
from blt_jax.decode import Generator, Sampling
from blt_jax.runs import bounds, folder, loading, resolve

pytestmark = pytest.mark.skipif(
  jax.device_count() < 8, reason="needs the fake devices of conftest.py"
)


def _config(home):
  config = tiny_config("mixture", workdir=str(home / "run"), num_steps=4)
  config.data.update(path=str(home / "text"), heldout_fraction=0.2, num_patches=16)
  for name in ("encoder", "latent", "decoder"):
    config.model[name].unroll = True  # compiles faster
  config.model.update(patch_sizes=(3.0, 6.0), num_patches=8, hash_sizes=())
  config.patching.update(entropies="table", entropy_model=str(home / "table"))
  config.optimizer.accumulate = 2
  config.mesh.update(data=2, fsdp=2, tensor=2)
  config.schedule.warmup_steps = 1
  return config


def _check_refusals(config):
  """Thresholds are to be found with the entropies, or given."""
  with pytest.raises(
    ValueError, match=r"coarser is .., .*calibrate --run=\S+table --target_bytes_per_patch=3,6"
  ):
    resolve.resolve(config)
  for name, value in (("scheme", "space"), ("cumulative", True)):
    other = config.copy_and_resolve_references()
    other.patching[name] = value
    with pytest.raises(ValueError, match=f"{name}={value!r} makes patches of one resolution"):
      resolve.resolve(other)
  one = tiny_config("blt")
  one.patching.coarser = (1.0,)
  with pytest.raises(ValueError, match=r"coarser=\(1.0,\) is of models .* a blt reads one"):
    bounds.check(one)
  config = config.copy_and_resolve_references()
  config.patching.entropies = "device"
  with pytest.raises(ValueError, match="'device' makes patches of one resolution"):
    bounds.check(config)


def _evaluate_by_own_entropies(run, entropy_model):
  evaluate.main([f"--run={run}", f"--data={run}/../text", f"--entropy_model={entropy_model}"])


def test_a_run_from_its_entropies_to_generation(tmp_path, capsys):
  text = write_text(tmp_path / "text")
  train_table.main([f"--input={text}", f"--output={tmp_path / 'table'}"])
  flags = [f"--run={tmp_path / 'table'}", "--max_bytes=10000"]
  with pytest.raises(ValueError, match="must rise, from fine to coarse"):
    calibrate.main([*flags, "--target_bytes_per_patch=6,3"])
  config = _config(tmp_path)
  calibrate.main([*flags, "--target_bytes_per_patch=3"])
  _check_refusals(config)
  calibrate.main([*flags, "--target_bytes_per_patch=3,6"])
  numbers = train.train(config)
  assert len(losses(tmp_path / "run")) == 4
  assert 2 < numbers["patch_size"] < 3.6 < numbers["latent_patch_size"] < 9
  assert "dropped_targets" not in numbers  # of held-out text, which has slots for all patches
  section = folder.load_config(tmp_path / "run").patching
  assert section.threshold < section.coarser[0]
  one = tiny_config("blt", workdir=config.workdir)  # takes no thresholds of other resolutions
  one.data.path, one.patching = config.data.path, config.patching
  assert resolve.resolve(one).patching.coarser == ()

  capsys.readouterr()
  evaluate.main([f"--run={tmp_path / 'run'}", f"--data={text / 'file_0.py'}"])
  found = json.loads(capsys.readouterr().out)
  assert found["bytes"] == (text / "file_0.py").stat().st_size and 0 < found["bpb"] < 9

  for read in (loading.load_language_model, _evaluate_by_own_entropies):
    with pytest.raises(ValueError, match="own is of a blt, and the run's model is a mixture"):
      read(tmp_path / "run", entropy_model="own")

  generator = Generator(loading.load_language_model(tmp_path / "run"), prefill_chunk=8)
  (result,) = generator.generate(["def function_1"], Sampling(max_bytes=8))
  patcher = loading.load_patcher(section, tmp_path / "run")
  shown = show_patches.patch_text("def function_1", patcher)
  np.testing.assert_array_equal(shown.starts, result.starts[:15])
  lines = patch_view.render(shown, use_colour=False).splitlines()
  assert lines[0].startswith("||·||d") and lines[0].count("|") == sum(
    shown.starts_of(level).sum() for level in (0, 1)
  )
  assert lines[-1].startswith("|| 15 bytes in")
  assert shown.starts_of(1).sum() < shown.starts.sum()
