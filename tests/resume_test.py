"""A training process that is killed again and again ends as if nothing had happened."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
from tiny_runs import losses

NUM_KILLS = 20
_SCRIPT = """
import sys
from absl import flags
import jax
from blt_jax import config as settings
from blt_jax import train

def main(text, workdir, num_steps, num_workers, cache):
  flags.FLAGS.mark_as_parsed()
  jax.config.update("jax_compilation_cache_dir", cache)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  config = settings.get_config("byte_lm")
  config.model.transformer.update(
    dim=16, num_layers=1, num_heads=2, window=8, mlp_multiple_of=8)
  config.model.dtype = "float32"
  config.update(workdir=workdir, num_steps=int(num_steps))
  config.data.update(path=text, heldout_fraction=0.2, batch_size=2, seq_len=32,
                     num_patches=33, pool_size=8, num_workers=int(num_workers))
  config.optimizer.learning_rate = 1e-2
  config.schedule.warmup_steps = 2
  config.checkpoint.every_steps = 1
  config.logging.update(every_steps=1, tensorboard=False)
  config.eval.update(every_steps=10**6, max_batches=1)
  train.train(config)

if __name__ == "__main__":
  main(*sys.argv[1:])
"""


def _is_saving(workdir):
  return any("tmp" in p.name for p in (workdir / "checkpoints").glob("*"))


def _count_lines(workdir):
  path = workdir / "metrics.jsonl"
  return path.read_bytes().count(b"\n") if path.exists() else 0


def _kill_somewhere(process, workdir, rng, in_save):
  """Kills a process after some steps, within a save or not; False if it was done first."""
  wanted = _count_lines(workdir) + int(rng.integers(1, 5))
  deadline = time.monotonic() + 120
  while process.poll() is None and time.monotonic() < deadline:
    if _count_lines(workdir) >= wanted and (not in_save or _is_saving(workdir)):
      time.sleep(0 if in_save else rng.uniform(0, 0.05))
      break
    time.sleep(0.002)
  was_running = process.poll() is None
  os.kill(process.pid, signal.SIGKILL)
  process.wait()
  return was_running


def test_killed_twenty_times_gives_the_same_losses_to_the_bit(tmp_path):
  text = tmp_path / "text"
  text.mkdir()
  for i in range(20):
    lines = [f"def function_{i}_{n}(x): return x + {n}\n" for n in range(20)]
    (text / f"file_{i}.py").write_text("".join(lines))
  (tmp_path / "script.py").write_text(_SCRIPT)
  num_steps = 6 * NUM_KILLS

  def start(name, num_workers=0):
    flags = [str(text), str(tmp_path / name), str(num_steps), str(num_workers)]
    command = [sys.executable, str(tmp_path / "script.py"), *flags, str(tmp_path / "cache")]
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
