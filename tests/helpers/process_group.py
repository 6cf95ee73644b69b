"""Real processes of one run, each with some virtual CPU devices."""

import json
import os
import pathlib
import socket
import subprocess
import sys

_SCRIPT = pathlib.Path(__file__).with_name("train_process.py")
_DEVICES = "--xla_force_host_platform_device_count="
_LIMIT = 600  # seconds; a run that takes longer hangs


def _other_flags():
  """Those of conftest.py, without the number of devices."""
  flags = os.environ["XLA_FLAGS"].split()
  return " ".join(flag for flag in flags if not flag.startswith(_DEVICES))


class ProcessGroup:
  """Starts `count` processes that train together on four devices."""

  def __init__(self, count, kind, folder, settings, settings_of_last=None):
    self._logs = [folder / f"log_{os.urandom(4).hex()}_{i}" for i in range(count)]
    with socket.socket() as free:
      free.bind(("localhost", 0))
      port = free.getsockname()[1]
    self.processes = []
    for i, log in enumerate(self._logs):
      changed = settings_of_last if settings_of_last and i == count - 1 else {}
      command = [
        sys.executable,
        _SCRIPT,
        kind,
        folder / "cache",
        json.dumps(settings | changed),
      ]
      environment = os.environ | {
        "XLA_FLAGS": f"{_other_flags()} {_DEVICES}{4 // count}",
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": str(count),
        "JAX_PROCESS_ID": str(i),
      }
      with log.open("w") as output:
        self.processes.append(
          subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        )

  def wait(self):
    """Exit codes; a process that hangs fails the test."""
    try:
      return [process.wait(_LIMIT) for process in self.processes]
    finally:
      for process in self.processes:
        process.kill()

  def logs(self):
    """What each process has printed."""
    return [log.read_text() for log in self._logs]
