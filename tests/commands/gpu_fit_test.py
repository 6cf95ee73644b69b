"""Whether a step fits the GPUs here; CPU devices stand in for them."""

import json

import jax
import pytest

from blt_jax import train_compile
from blt_jax.cost import chips, topologies


@pytest.fixture(name="config")
def _config(tmp_path):
  """The file of a tiny byte model's settings."""
  file = tmp_path / "config.py"
  file.write_text(
    "from tiny_runs import tiny_config\n\n\n"
    "def get_config():\n"
    f"  return tiny_config('byte_lm', workdir={str(tmp_path / 'run')!r})\n"
  )
  yield f"--config={file}"
  jax.config.update("jax_enable_compilation_cache", True)


def _gpu_with(memory):
  chip = chips.Chip("NVIDIA H200", 1e12, memory, 1e9)
  return lambda: topologies.Topology("this machine", 1, tuple(jax.devices()[:1]), chip)


def test_a_step_that_fits_and_one_that_does_not(config, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(topologies, "local_gpus", _gpu_with(1e9))
  assert train_compile.main([config, f"--json={tmp_path / 'fit.json'}"]) is None
  assert "this machine: 1 x NVIDIA H200" in (told := capsys.readouterr().out)
  assert "Memory per chip, GB of 1.0" in told and "Collectives" not in told
  memory = json.loads((tmp_path / "fit.json").read_text())["memory"]
  kept = memory["parameters"] + memory["optimizer"]
  assert kept < memory["peak"] <= kept + memory["temporary"] + memory["batch"] + 1000
  monkeypatch.setattr(topologies, "local_gpus", _gpu_with(memory["peak"] - 1))
  assert "What helps:\n" in train_compile.main([config])


def test_a_machine_without_gpus(config):
  with pytest.raises(ValueError, match="no GPU here, only cpu; name the topology"):
    train_compile.main([config])
