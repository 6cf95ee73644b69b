"""A trainer that is interrupted or killed: what it saves, says and leaves behind."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import psutil
import pytest
from tiny_runs import count_lines, write_text

_SCRIPT = pathlib.Path(__file__).parents[1] / "helpers" / "train_process.py"


@pytest.fixture(scope="module", name="folder")
def _folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("interrupt")
  write_text(folder / "text")
  return folder


def _start(folder, name, **data):
  """A run without end, in a process group of its own as in a terminal."""
  settings = {
    "workdir": str(folder / name),
    "num_steps": 10**6,
    "data": dict(path=str(folder / "text"), heldout_fraction=0.2, batch_size=2, pool_size=8)
    | data,
    "eval": dict(max_batches=1),
  }
  command = [sys.executable, _SCRIPT, "byte_lm", folder / "cache", json.dumps(settings)]
  with (folder / f"{name}.log").open("w") as log:
    return subprocess.Popen(
      command, stderr=log, env=os.environ | {"XLA_FLAGS": ""}, start_new_session=True,
      preexec_fn=_hear_interrupts,
    )  # fmt: skip


def _hear_interrupts():
  """A shell in the background has its children ignore them."""
  signal.signal(signal.SIGINT, signal.SIG_DFL)


def _wait_for(condition, process=None):
  deadline = time.monotonic() + 300
  while not condition():
    assert time.monotonic() < deadline and (process is None or process.poll() is None)
    time.sleep(0.01)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_ctrl_c_saves_and_ends_without_a_traceback(num_workers, folder):
  name = f"interrupted_{num_workers}"
  process = _start(folder, name, num_workers=num_workers)
  _wait_for(lambda: count_lines(folder / name) > 2, process)
  os.killpg(process.pid, signal.SIGINT)  # the workers get it too
  assert process.wait(120) == 130
  log = (folder / f"{name}.log").read_text()
  assert "Saving a checkpoint" in log and "Preempted at step" in log
  assert "Traceback" not in log
  step = int(log.partition("Preempted at step ")[2].split()[0])
  assert (folder / name / "checkpoints" / str(step)).is_dir()
  assert not (folder / name / "trainer.json").exists()


def test_ctrl_c_before_the_first_step_ends_at_once(folder):
  process = _start(folder, "early", num_workers=2)
  _wait_for((folder / "early" / "trainer.json").exists, process)
  os.killpg(process.pid, signal.SIGINT)
  assert process.wait(120) == 130
  assert "Traceback" not in (folder / "early.log").read_text()


def _children(process):
  """Worker processes, not that which watches over shared memory."""
  found = psutil.Process(process.pid).children(recursive=True)
  return [c for c in found if "spawn_main" in " ".join(c.cmdline())]


@pytest.mark.parametrize("seconds", [0.0, 1.0])
def test_workers_end_with_a_trainer_that_is_killed_as_they_start(seconds, folder):
  process = _start(folder, f"killed_{seconds}", num_workers=2)
  _wait_for(lambda: _children(process), process)
  time.sleep(seconds)
  workers = _children(process)
  process.kill()
  process.wait()
  gone, alive = psutil.wait_procs(workers, timeout=90)
  for worker in alive:
    worker.kill()
  assert not alive and gone
