"""A training process that is killed again and again ends as if nothing had happened."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
from tiny_runs import count_lines, losses, write_text

NUM_KILLS = 5
_SCRIPT = pathlib.Path(__file__).parents[1] / "helpers" / "train_process.py"


def _is_saving(workdir):
  return any("tmp" in p.name for p in (workdir / "checkpoints").glob("*"))


def _kill_somewhere(process, workdir, rng, in_save):
  """Kills a process after some steps, within a save or not; False if it was done first."""
  wanted = count_lines(workdir) + int(rng.integers(1, 5))
  deadline = time.monotonic() + 120
  while process.poll() is None and time.monotonic() < deadline:
    if count_lines(workdir) >= wanted and (not in_save or _is_saving(workdir)):
      time.sleep(0 if in_save else rng.uniform(0, 0.05))
      break
    time.sleep(0.002)
  was_running = process.poll() is None
  os.kill(process.pid, signal.SIGKILL)
  process.wait()
  return was_running


def test_killed_again_and_again_gives_the_same_losses_to_the_bit(tmp_path):
  text = write_text(tmp_path / "text")
  num_steps = 6 * NUM_KILLS

  def start(name, num_workers=0):
    settings = {
      "workdir": str(tmp_path / name),
      "num_steps": num_steps,
      "data": dict(
        path=str(text), heldout_fraction=0.2, batch_size=2, pool_size=8, num_workers=num_workers
      ),
      "optimizer": dict(learning_rate=1e-2),
      "schedule": dict(warmup_steps=2),
      "checkpoint": dict(every_steps=1),
      "eval": dict(every_steps=10**6, max_batches=1),
    }
    command = [sys.executable, _SCRIPT, "byte_lm", tmp_path / "cache", json.dumps(settings)]
    with (tmp_path / "log").open("a") as log:
      # One device, as the fake ones of the tests would share a batch of two.
      return subprocess.Popen(command, stderr=log, env=os.environ | {"XLA_FLAGS": ""})

  assert start("whole").wait() == 0, (tmp_path / "log").read_text()[-3000:]
  rng, workdir, kills = np.random.default_rng(0), tmp_path / "killed", 0
  while kills < NUM_KILLS:
    process = start("killed", num_workers=int(kills % 5 == 4))  # some with a worker process
    assert _kill_somewhere(process, workdir, rng, in_save=kills % 2 == 0)
    kills += 1
  assert start("killed").wait() == 0
  whole = losses(tmp_path / "whole")
  assert len(whole) == num_steps
  assert losses(workdir) == whole
