"""One trainer a folder: a file there says who trains, and that it is alive."""

import contextlib
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import psutil
from absl import logging

from blt_jax.parallel import distributed
from blt_jax.storage import atomic
from blt_jax.storage.folders import Folder
from blt_jax.storage.paths import Path

_FILE = "trainer.json"
_BEAT = 60  # seconds between signs of life
_DEAD = 300  # seconds without one after which a trainer on another host counts as dead
_SETTLED = 1.0  # seconds after which buckets show what several wrote at once
_POLL = 2.0  # seconds between looks at a folder that another has
_SAME_START = 2.0  # seconds by which clocks differ on when a process began

Json = dict[str, Any]


class InUseError(ValueError):
  """Somebody else trains in the folder; see `cli.logs.run` for the exit status."""

  exit_status = 75  # of a failure that passes, as sysexits.h has it


class Lock:
  """The right to train in a folder, as long as nobody else takes it."""

  def __init__(self, workdir: Path):
    """Takes the folder, which it makes.

    Raises:
      InUseError: a living trainer has it.
      OSError: it cannot be written.
    """
    self._home, self._workdir = Folder(workdir), workdir
    process = psutil.Process()
    self._own: Json = {
      "host": socket.gethostname(),
      "process": process.pid,
      "started": process.create_time(),
      "token": uuid.uuid4().hex,
    }
    self._taken_by: Json | None = None
    self._closed = threading.Event()
    with atomic.explaining(
      f"config.workdir {workdir}", "Choose a folder or a bucket where you may write"
    ):
      self._home.make()
      with self._home.alone():
        self._refuse(self._read())
        self._beat()
    if self._home.is_remote:  # where nothing holds others off meanwhile
      time.sleep(_SETTLED)
      self._refuse(self._read())
    threading.Thread(target=self._keep_beating, daemon=True, name="trainer-lock").start()

  def check(self) -> None:
    """Raises InUseError if another trainer has taken the folder, as from one long suspended."""
    if self._taken_by is not None:
      other = _describe(self._taken_by)
      raise InUseError(f"{other} has taken {self._workdir} over, so this one stops.")

  def close(self) -> None:
    """Leaves the folder to others."""
    self._closed.set()
    with contextlib.suppress(OSError, ValueError), self._home.alone():
      if self._read().get("token") == self._own["token"]:
        self._home.remove(_FILE)

  def _read(self) -> Json:
    """Who has the folder; empty if nobody has, or if nobody can tell."""
    if not self._home.exists(_FILE):
      return {}
    try:
      return self._home.read_json(_FILE)
    except (FileNotFoundError, ValueError):
      return {}

  def _refuse(self, holder: Json) -> None:
    if holder.get("token") != self._own["token"] and is_alive(holder):
      raise InUseError(
        f"{_describe(holder)} trains in {self._workdir}, and two would spoil it. Wait for it, "
        "end it, or choose another config.workdir. A trainer that died on another host counts "
        f"as alive for {_DEAD // 60} minutes."
      )

  def _beat(self) -> None:
    self._home.write_json(_FILE, self._own | {"seen": time.time()})

  def _keep_beating(self) -> None:
    while not self._closed.wait(_BEAT):
      with contextlib.suppress(OSError, ValueError), self._home.alone():
        holder = self._read()
        if holder and holder.get("token") != self._own["token"]:
          self._taken_by = holder
          return
        if not self._closed.is_set():
          self._beat()


def is_alive(holder: Json) -> bool:
  """Whether the trainer of a lock's file may be running.

  On this host its process tells, wherever else its last sign of life.
  """
  try:
    host, process, started = holder["host"], int(holder["process"]), float(holder["started"])
    seen = float(holder["seen"])
  except (KeyError, TypeError, ValueError):
    return False
  if host != socket.gethostname():
    return time.time() - seen < _DEAD
  try:
    found = psutil.Process(process)
    is_same = abs(found.create_time() - started) < _SAME_START
    return is_same and found.status() != psutil.STATUS_ZOMBIE
  except psutil.NoSuchProcess:
    return False
  except psutil.AccessDenied:
    return True


def _describe(holder: Json) -> str:
  return f"Process {holder['process']} of host {holder['host']}"


class _NoLock:
  """What the processes have that are not the lead."""

  def check(self) -> None:
    """Leaves it to the lead."""


@contextlib.contextmanager
def hold(workdir: Path) -> Iterator[Lock | _NoLock]:
  """Holds the folder of a run for process 0; all processes call it, and fail together.

  Yields:
    The lock, or on the other processes what stands in for it.

  Raises:
    InUseError: another trainer has it.
  """
  lock, in_use = None, ""
  with distributed.failing_together():
    if distributed.is_lead():
      try:
        lock = Lock(workdir)
      except InUseError as error:
        in_use = str(error)
  if in_use := distributed.gather(in_use)[0]:
    raise InUseError(in_use)
  if lock is None:
    yield _NoLock()
    return
  with contextlib.closing(lock):
    yield lock


@contextlib.contextmanager
def in_turn(workdir: Path) -> Iterator[None]:
  """Holds a folder for this process, once whoever else has it is done with it."""
  is_said = False
  while True:
    try:
      lock = Lock(workdir)
      break
    except InUseError:
      if not is_said:
        logging.info("Waiting for another process, which has %s.", workdir)
      is_said = True
      time.sleep(_POLL)
  with contextlib.closing(lock):
    yield
