"""One trainer a folder: living ones keep others out, dead ones do not."""

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import fsspec
import psutil
import pytest
from waiting import eventually

from blt_jax.runs import lock
from blt_jax.runs.lock import InUseError, hold
from blt_jax.storage.folders import Folder

_HOLD = """
import sys, time
from blt_jax.runs import lock
with lock.hold(sys.argv[1]):
  print("held", flush=True)
  time.sleep(60)
"""


@contextlib.contextmanager
def _other_trainer(workdir):
  command = [sys.executable, "-c", _HOLD, str(workdir)]
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()


def _write(workdir, **changes):
  own = psutil.Process()
  fields = dict(host=socket.gethostname(), process=own.pid, started=own.create_time())
  workdir.mkdir(exist_ok=True)
  fields |= dict(token="other", seen=time.time()) | changes
  (workdir / "trainer.json").write_text(json.dumps(fields))


def _enters(workdir):
  try:
    with hold(workdir):
      return True
  except InUseError:
    return False


def test_a_second_trainer_refuses_and_names_the_first(tmp_path):
  with _other_trainer(tmp_path / "run") as other:
    message = f"Process {other.pid} of host {socket.gethostname()} trains in {tmp_path}"
    with pytest.raises(InUseError, match=message) as error, hold(tmp_path / "run"):
      pass
    assert error.value.exit_status == 75
    other.send_signal(signal.SIGKILL)
    time.sleep(0.5)
    assert other.returncode is None and _enters(tmp_path / "run")  # a zombie
  assert _enters(tmp_path / "run")


def test_it_is_gone_when_the_trainer_ends(tmp_path):
  for error in (None, KeyError):
    with contextlib.suppress(KeyError), hold(tmp_path):
      assert (tmp_path / "trainer.json").exists()
      if error:
        raise error
    assert not list(tmp_path.iterdir())


def test_one_after_the_other(tmp_path, monkeypatch):
  monkeypatch.setattr(lock, "_POLL", 0.01)
  with _other_trainer(tmp_path) as other:
    threading.Timer(1.0, other.kill).start()
    with lock.in_turn(tmp_path):
      assert other.wait() and not _enters(tmp_path)
  assert _enters(tmp_path)


@pytest.mark.parametrize(
  ("holder", "is_alive"),
  [
    ({}, True),
    ({"started": 1.0}, False),  # another process got its number
    ({"process": 2**22 + 1}, False),
    ({"host": "elsewhere", "process": 2**22 + 1}, True),
    ({"host": "elsewhere", "seen": time.time() - 400}, False),
    ({"host": "elsewhere", "seen": "?"}, False),
  ],
)
def test_who_counts_as_alive(holder, is_alive, tmp_path):
  _write(tmp_path / "run", **holder)
  assert _enters(tmp_path / "run") != is_alive


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"host": 3}'])
def test_a_damaged_file_stops_nobody(text, tmp_path):
  (tmp_path / "trainer.json").write_text(text)
  assert _enters(tmp_path)


def test_a_sign_of_life_is_given_and_a_loss_noticed(tmp_path, monkeypatch):
  monkeypatch.setattr(lock, "_BEAT", 0.02)

  def seen():
    return json.loads((tmp_path / "trainer.json").read_text())["seen"]

  with hold(tmp_path) as held:
    first = seen()
    eventually(lambda: seen() > first)
    held.check()
    with Folder(tmp_path).alone():
      _write(tmp_path, host="elsewhere")
    eventually(lambda: held._taken_by is not None)
    with pytest.raises(InUseError, match="of host elsewhere has taken .* over"):
      held.check()
  assert (tmp_path / "trainer.json").exists()  # it is the other's


def _try(workdir, barrier, found):
  barrier.wait()
  try:
    with hold(workdir):
      found.put(os.getpid())
      time.sleep(2)
  except InUseError:
    found.put(None)


def test_of_several_that_start_at_once_one_trains(tmp_path):
  context = multiprocessing.get_context("spawn")
  barrier, found = context.Barrier(3), context.Queue()
  processes = [context.Process(target=_try, args=(tmp_path, barrier, found)) for _ in range(3)]
  for process in processes:
    process.start()
  assert sum(found.get(timeout=120) is not None for _ in processes) == 1
  for process in processes:
    process.join()


def test_in_a_bucket_too(monkeypatch):
  monkeypatch.setattr(lock, "_SETTLED", 0)
  fsspec.filesystem("memory").store.clear()
  with hold("memory://run"), pytest.raises(InUseError), hold("memory://run"):
    pass
  assert _enters("memory://run")
