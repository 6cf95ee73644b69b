"""Rehearses a pod: a run that is preempted again and again ends as an undisturbed one does.

  PYTHONPATH=tests/helpers python tests/manual/rehearsal.py

With a stand-in for gcloud, launch/tpu_vm.sh creates a TPU whose workers are processes of this
machine. They train a tiny BLT on stored entropies, over a mesh of the devices of all, and share
the folder of the run and nothing else.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import cloud_standin
import jax
import numpy as np
from tiny_runs import logged_losses

from blt_jax.runs import folder as runs

_ROOT = pathlib.Path(__file__).parents[2]
_NAME = "pod"


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--num_steps", type=int, default=60)
  args = parser.parse_args()
  jax.config.update("jax_platforms", "cpu")
  with tempfile.TemporaryDirectory() as folder:
    rehearse(pathlib.Path(folder), args.num_steps)


def rehearse(folder, num_steps):
  """Trains twice, undisturbed and disturbed at equal distances, and compares the runs."""
  data = _store_entropies(folder)
  whole = Pod(folder / "whole", data, num_steps)
  with whole.watch() as watch:
    assert watch.wait() == 0, whole.describe()
  print(f"Undisturbed: loss {whole.losses()[num_steps]} after {num_steps} steps.")

  pod = Pod(folder / "disturbed", data, num_steps)
  with pod.watch() as watch:
    for i, disturb in enumerate(_DISTURBANCES, start=1):
      pod.wait_for_step(i * num_steps // (len(_DISTURBANCES) + 1), watch)
      print(f"Step {max(pod.losses())}: {disturb.__doc__}")
      disturb(pod.cloud)
    assert watch.wait() == 0, pod.describe()
  print(f"Disturbed: loss {pod.losses()[num_steps]} after {num_steps} steps.")
  compare(whole, pod, num_steps)
  print("All parameters are equal to the bit.")


def compare(whole, pod, num_steps):
  """Checks that two runs are one: equal parameters at the end, equal losses on the way."""
  trained = [runs.load_run(run.workdir).params for run in (whole, pod)]
  jax.tree.map(np.testing.assert_array_equal, *trained)
  expected, found = whole.losses(), pod.losses()
  assert list(expected) == list(found) == list(range(1, num_steps + 1))
  # The CPU's collectives do not always sum a reported loss in the same order.
  np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-6)


# --- What happens to a pod


def preempt(cloud):
  """The TPU is preempted; SIGTERM leaves time for a checkpoint."""
  cloud.preempt(_NAME, signal.SIGTERM)


def preempt_at_once(cloud):
  """The TPU is preempted without warning."""
  cloud.preempt(_NAME, signal.SIGKILL)


def kill_one_process(cloud):
  """The training process of the last worker gets SIGKILL."""
  supervisor = (cloud.homes(_NAME)[-1] / "blt_jax" / "worker.pid").read_text().strip()
  subprocess.run(["pkill", "-KILL", "-P", supervisor], check=True)


_DISTURBANCES = (preempt, kill_one_process, preempt_at_once)


# --- The runs


class Pod:
  """A TPU in a cloud of its own, and the run on it."""

  def __init__(self, folder, data, num_steps):
    self.cloud = cloud_standin.Cloud(folder / "cloud")
    self.cloud.install()
    self.workdir = folder / "run"
    self._log = folder / "watch.log"
    self._settings = [
      *_TINY,
      *data,
      f"--config.workdir={self.workdir}",
      f"--config.num_steps={num_steps}",
    ]

  @contextlib.contextmanager
  def watch(self):
    """Runs launch/tpu_vm.sh watch, which creates the TPU and trains."""
    place = (f"--name={_NAME}", "--zone=zone", "--project=project")
    how = ("--type=v4-16", "--spot", "--poll=0.5", "--max_failures=1")
    command = ["bash", str(_ROOT / "launch" / "tpu_vm.sh")]
    environment = self.cloud.environment | _FAST
    with self._log.open("w") as log:
      process = subprocess.Popen(
        [*command, "watch", *place, *how, *self._settings],
        env=environment,
        stdout=log,
        stderr=log,
      )
    try:
      yield process
    finally:
      process.kill()
      if self.cloud.request(_NAME):
        subprocess.run([*command, "delete", *place], env=environment, check=True)

  def losses(self):
    """Loss by step, the last where steps ran again."""
    return dict(logged_losses(self.workdir))

  def wait_for_step(self, step, watch):
    while max(self.losses(), default=0) < step:
      assert watch.poll() is None, self.describe()
      time.sleep(0.02)

  def describe(self):
    """What a failure can be understood from."""
    logs = [self._log, *self.cloud.folder.glob("*/*/blt_jax/worker.log")]
    return "\n".join(f"== {path}\n{path.read_text()[-5000:]}" for path in logs)


# Compiling takes longer than running. There is no cache of compiled programs, as only the
# process that wrote it would find them, and not wait for the others long enough.
_FAST = {"XLA_FLAGS": "--xla_backend_optimization_level=0", "TF_CPP_MIN_LOG_LEVEL": "2"}
if importlib.metadata.version("jaxlib").startswith("0.10."):
  _FAST["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"  # later versions reject it

_TINY = [
  "--config=configs/quickstart.py",
  *(f"--config.model.{stack}.dim=16" for stack in ("encoder", "decoder")),
  "--config.model.latent.dim=32",
  "--config.model.latent.num_layers=1",
  "--config.model.hash_vocab_size=64",
  "--config.data.seq_len=64",
  "--config.data.num_patches=32",
  "--config.data.batch_size=8",
  "--config.data.pool_size=8",
  "--config.data.heldout_fraction=0.1",
  "--config.eval.max_batches=1",
  "--config.mesh.fsdp=4",  # each device, so each process too, keeps and saves a part
  "--config.checkpoint.every_steps=10",
  "--config.logging.every_steps=1",
  "--config.logging.tensorboard=False",
]


def _store_entropies(folder):
  """Makes a corpus with entropies; gives the settings of a run that reads it."""
  texts = [f"document {i}: " + "lorem ipsum dolor\n" * (i % 7) for i in range(200)]
  source, model, scored = folder / "text.jsonl", folder / "entropy", folder / "scored"
  source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
  _python(
    *("blt_jax.train", "--config=configs/quickstart.py:entropy", f"--config.workdir={model}"),
    *(f"--config.data.path={source}", "--config.num_steps=20", "--config.eval.max_batches=1"),
    *("--config.data.seq_len=64", "--config.data.batch_size=8", "--config.data.pool_size=8"),
  )
  _python(
    "blt_jax.score_entropies", f"--model={model}", f"--input={source}", f"--output={scored}"
  )
  _python("blt_jax.calibrate", f"--run={scored}", "--target_bytes_per_patch=3")
  return [
    f"--config.data.path={scored}",
    "--config.patching.entropies=stored",
    f"--config.patching.entropy_model={model}",
  ]


def _python(module, *arguments):
  environment = os.environ | _FAST | {"JAX_PLATFORMS": "cpu"}
  command = [sys.executable, "-m", module, *arguments]
  result = subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, text=True)
  assert result.returncode == 0, result.stderr


if __name__ == "__main__":
  main()
