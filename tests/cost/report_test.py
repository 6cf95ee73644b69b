"""What a report says of numbers made up so that the results are round."""

import json

import jax
import numpy as np
import pytest
from tiny_runs import tiny_config

from blt_jax.cost import chips, report
from blt_jax.cost.work import Buffer, Exchange, Work
from blt_jax.runs import advice

CHIP = chips.Chip("TPU v4", 100.0, 1000.0, 10.0, 1.0, 6, 0.5, clock=20.0)


def _report():
  exchanges = (
    Exchange("all-gather", "fsdp", False, 3, 2e9, 1.5e9, 2.0),
    Exchange("send", "slices", True, 1, 1e9, 1e9, 1.0),
  )
  step = report.Step(
    "v4-16", 2, dict(slices=2, data=1, fsdp=4, tensor=2), 12_345, 64, 1000, 250, 2
  )
  buffers = (Buffer(8, "f32[2]", "here"),)
  done = Work(500.0, 100.0, 200.0, 90.0, 60.0, exchanges, buffers, unknown=("x",))
  memory = report.Memory(100, 200, 1, 300, 550, 1000.0)
  return report.Report(step, CHIP, memory, 7.0, report.Flops(500, 100, 200, 320, 160), done)


def test_factors():
  flops = _report().flops
  assert flops.compiled == 600
  assert flops.remat_factor == 600 / 400  # all that is done, over what is done once
  assert flops.overhead == 400 / 320


def test_bounds_of_the_time_of_a_step():
  result = _report()
  times = result.times
  assert (times.arithmetic, times.memory, times.torus, times.network) == (6.0, 9.0, 2.0, 1.0)
  assert times.compiler == 3.0
  assert times.overlapped == 9.0
  assert times.in_turn == 9.0 + 2.0 + 1.0
  assert result.utilisation(times.overlapped) == pytest.approx(160 / 9.0 / 100)


def test_numbers_go_to_json_and_words():
  result = _report()
  numbers = json.loads(json.dumps(result.to_dict()))
  assert numbers["remat_factor"] == 1.5 and numbers["work"]["exchanges"][0]["times"] == 3
  text = report.to_text(result)
  assert "12,345 parameters on 2 x v4-16: 16 x TPU v4, mesh slices=2, data=1" in text
  assert "64 rows of 1,000 bytes and 250 patches, 0.06M bytes; in 2 parts of 4 rows" in text
  assert "slices (network)" in text and "Not counted right: x" in text


def _mesh():
  devices = np.array(jax.devices()[:1]).reshape(1, 1, 1, 1)
  return jax.sharding.Mesh(devices, ("slices", "data", "fsdp", "tensor"))


def test_what_does_not_fit_gets_advice():
  config = tiny_config("blt")
  config.model.latent.remat = "full"
  full = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 22G exceeds available HBM (15.75G).")
  error = advice.explain(full, config, _mesh())
  assert isinstance(error, advice.OutOfMemoryError)
  assert "22G exceeds available HBM" in str(error)
  assert "config.optimizer.accumulate=2" in str(error)  # 8 rows on one chip, in one part
  assert "config.model.decoder.remat=full (now none)" in str(error)
  assert "latent.remat" not in str(error) and "fsdp" not in str(error)


def test_other_errors_of_the_compiler_stay_what_they_are():
  other = jax.errors.JaxRuntimeError("INTERNAL: something else")
  assert advice.explain(other, tiny_config("blt"), _mesh()) is other
