"""Several real processes train as one does, and end together whatever happens."""

import json
import os
import signal
import time

import chex
import jax
import numpy as np
import pytest
from process_group import ProcessGroup
from tiny_runs import count_lines, losses, tiny_config, write_text

from blt_jax import train
from blt_jax.runs import folder as runs

NUM_DISTURBANCES = int(os.environ.get("BLT_JAX_DISTURBANCES", "1"))
_STEPS = 6
_TASKS = dict(every_steps=_STEPS, tasks="piqa", task_limit=4)


def _settings(text, workdir, num_steps=_STEPS, **overrides):
  """Of all runs here: four streams, whoever runs them; the rate does not know the end."""
  return {
    "workdir": str(workdir),
    "num_steps": num_steps,
    "data": dict(path=str(text), heldout_fraction=0.2, num_streams=4, pool_size=4),
    "optimizer": dict(learning_rate=1e-2),
    "schedule": dict(name="constant"),
    "patching": dict(scheme="byte"),
    "checkpoint": dict(every_steps=2),
    **overrides,
  }


@pytest.fixture(scope="module", name="folder")
def _folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("processes")
  write_text(folder / "text")
  return folder


@pytest.fixture(scope="module", name="alone")
def _alone(folder):
  """Folders of runs in one process, by kind of model."""
  found = {kind: folder / f"alone_{kind}" for kind in ("byte_lm", "blt")}
  for kind, workdir in found.items():
    tasks = _TASKS if kind == "byte_lm" else {}
    train.train(tiny_config(kind, **_settings(folder / "text", workdir, 9, eval=tasks)))
  return found


def _evaluation(workdir):
  """Numbers of a run's evaluation after `_STEPS` steps."""
  lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
  return next(x for x in lines if x.pop("kind") == "eval" and x["step"] == _STEPS)


@pytest.mark.parametrize(
  ("kind", "count", "mesh", "evaluation"),
  [
    ("byte_lm", 2, dict(data=4), _TASKS),
    ("byte_lm", 4, dict(data=2, tensor=2), {}),  # two processes hold the same rows
    ("blt", 2, dict(data=1, fsdp=2, tensor=2), {}),
  ],
)
def test_processes_train_as_one_does(kind, count, mesh, evaluation, alone, folder):
  workdir = folder / f"{kind}_{count}_{'_'.join(mesh)}"
  settings = _settings(folder / "text", workdir, mesh=mesh, eval=evaluation)
  group = ProcessGroup(count, kind, folder, settings)
  assert group.wait() == [0] * count, group.logs()
  found = losses(workdir)
  assert found.keys() == set(range(1, _STEPS + 1))
  expected = losses(alone[kind])
  np.testing.assert_allclose([found[i] for i in found], [expected[i] for i in found], rtol=1e-5)
  if evaluation:
    found, wanted = (_evaluation(x) for x in (workdir, alone[kind]))
    assert {"piqa/acc", "piqa/acc_norm"} <= wanted.keys()
    chex.assert_trees_all_close(found, wanted, rtol=1e-5)
  # It goes on with another mesh, and another number of processes.
  train.train(tiny_config(kind, **_settings(folder / "text", workdir, 9)))
  found = losses(workdir)
  np.testing.assert_allclose([found[i] for i in expected], list(expected.values()), rtol=1e-5)


def _disturb(group, workdir, rng, signum):
  """Sends a signal to one of the processes after some more steps."""
  wanted = count_lines(workdir) + int(rng.integers(1, 6))
  while count_lines(workdir) < wanted and group.processes[0].poll() is None:
    time.sleep(0.01)
  time.sleep(rng.uniform(0, 0.2))
  victim = group.processes[rng.integers(len(group.processes))]
  assert victim.poll() is None, group.logs()
  victim.send_signal(signum)


def test_disturbed_runs_end_together_and_continue_to_the_bit(folder):
  num_steps = 10 + 24 * NUM_DISTURBANCES  # more than the disturbances get to see
  mesh = dict(data=2, fsdp=2)
  evaluation = dict(every_steps=10**6)
  settings = _settings(folder / "text", folder / "whole", num_steps, mesh=mesh, eval=evaluation)
  assert ProcessGroup(2, "byte_lm", folder, settings).wait() == [0, 0]
  settings["workdir"] = str(folder / "disturbed")
  rng = np.random.default_rng(0)
  for i in range(2 * NUM_DISTURBANCES):
    group = ProcessGroup(2, "byte_lm", folder, settings)
    signum = (signal.SIGTERM, signal.SIGKILL)[i % 2]
    _disturb(group, folder / "disturbed", rng, signum)
    codes, texts = group.wait(), group.logs()
    if signum == signal.SIGTERM:
      assert codes == [0, 0], texts
      assert "Preempted at step" in texts[0]
    else:
      assert 0 not in codes, texts
      assert any("stops:" in text or "another task died" in text for text in texts)
  assert ProcessGroup(2, "byte_lm", folder, settings).wait() == [0, 0]
  # The CPU's collectives do not always sum a reported loss in the same order.
  trained = [runs.load_run(folder / name).params for name in ("whole", "disturbed")]
  jax.tree.map(np.testing.assert_array_equal, *trained)


def test_other_settings_on_one_host_are_an_error_on_all(folder):
  settings = _settings(folder / "text", folder / "different")
  group = ProcessGroup(2, "byte_lm", folder, settings, settings_of_last={"seed": 1})
  assert group.wait() == [1, 1]
  for text in group.logs():
    assert "process 1 in config.seed" in text
  assert not (folder / "different").exists()


def test_a_folder_that_cannot_be_made_is_an_error_on_all(folder):
  settings = _settings(folder / "text", folder / "text" / "file_0.py" / "run")
  group = ProcessGroup(2, "byte_lm", folder, settings)
  assert group.wait() == [1, 1]
  assert "run cannot be written" in group.logs()[0]
  assert "Another process failed: process 0: OSError: config.workdir" in group.logs()[1]
