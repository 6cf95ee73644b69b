"""Several processes that train one model: how they start, agree and end together."""

import contextlib
import hashlib
import json
import os
import pathlib
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

import blt_jax

_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_asked_to_stop = False
_interrupted = False


def start(heartbeat_seconds: int = 60) -> None:
  """Connects this process to the others of the run; the first thing a program does.

  They find each other by the environment variables JAX_COORDINATOR_ADDRESS (host:port of
  process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID where these are set, else as JAX does on
  TPU VMs, GKE and Slurm. A process alone stays alone. Several processes on one host divide
  its devices by JAX_LOCAL_DEVICE_IDS. SIGTERM from now on means to stop at the next step; see
  `preempted`.

  Args:
    heartbeat_seconds: after this long without a sign of life of one process, the others end.

  Raises:
    ValueError: some of the variables are missing or no numbers.
  """
  signal.signal(signal.SIGTERM, _ask_to_stop)  # replaced by JAX's where processes connect
  address, count, index = _read_variables()
  try:
    jax.distributed.initialize(
      address, count, index, heartbeat_timeout_seconds=heartbeat_seconds
    )
  except ValueError:
    if address is not None:
      raise
    return  # no cluster was found
  if not is_lead():
    logging.set_verbosity(logging.WARNING)


def is_lead() -> bool:
  """Whether this is process 0, the one that writes logs; a process alone wakes no device."""
  return not jax.distributed.is_initialized() or jax.process_index() == 0


def preempted(step: int) -> bool:
  """Whether to save now and end, since a process got SIGTERM.

  Args:
    step: the one just done; all processes ask after each step, and agree.
  """
  if jax.distributed.is_initialized():
    return multihost_utils.reached_preemption_sync_point(step)
  return _asked_to_stop


@contextlib.contextmanager
def saving_on_interrupt() -> Iterator[None]:
  """Lets a first Ctrl-C mean what SIGTERM means in the block; a second one ends it at once."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return

  def ask(signum: int, frame: Any) -> None:
    global _interrupted
    _interrupted = True
    signal.signal(signal.SIGINT, before)
    os.write(2, b"\nSaving a checkpoint after this step. Ctrl-C again ends at once.\n")
    if jax.distributed.is_initialized():
      os.kill(os.getpid(), signal.SIGTERM)  # JAX tells the other processes
    else:
      _ask_to_stop(signum, frame)

  before = signal.signal(signal.SIGINT, ask)
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, before)


def exit_status() -> int | None:
  """That of a trainer that ends well: 130, as shells have it, after Ctrl-C; else None."""
  return 128 + signal.SIGINT if _interrupted else None


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
  """Ends this process at once on an error: to wait for the others would hang.

  Those notice it in their next message to it, or after `heartbeat_seconds`. A single
  process ends so where a disk fails: what was being saved has errors to tell for pages.
  """
  try:
    yield
  except Exception as error:
    if jax.process_count() == 1:
      if not isinstance(error, OSError):
        raise
      print(f"error: {error}", file=sys.stderr, flush=True)
      os._exit(1)
    status = getattr(error, "exit_status", 1)
    traceback.print_exc()
    print(
      f"Process {jax.process_index()} of {jax.process_count()} stops: "
      f"{type(error).__name__}: {error}\nIf this is about a lost connection, another process "
      "stopped first: see its log.",
      file=sys.stderr,
      flush=True,
    )
    if is_lead():
      time.sleep(3)  # the others end with it; let them say why
    os._exit(status)


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
  """Raises on all processes what one of them raises in the block.

  All of them must enter the block, which must not communicate.

  Raises:
    RuntimeError: another process failed; its message is in this one.
  """
  try:
    yield
  except Exception as error:
    gather(f"{type(error).__name__}: {error}")
    raise
  failed = [f"process {i}: {text}" for i, text in enumerate(gather("")) if text]
  if failed:
    raise RuntimeError(f"Another process failed: {'; '.join(failed)}")


def check_same(settings: Mapping[str, Any]) -> None:
  """Checks that all processes run the same code with the same settings.

  Args:
    settings: section -> what JSON can hold.

  Raises:
    ValueError: on all processes; the message says which differs in what.
  """
  digests = gather(_digests(settings))
  common = [Counter(d.get(part) for d in digests).most_common(1)[0][0] for part in digests[0]]
  usual = dict(zip(digests[0], common, strict=True))
  different = [
    f"process {i} in {', '.join(sorted(k for k in d if d[k] != usual.get(k)))}"
    for i, d in enumerate(digests)
    if d != usual
  ]
  if different:
    raise ValueError(
      f"All processes must run the same code with the same settings; {'; '.join(different)} "
      f"differs from the others. Copy the tree to all hosts and start the same command."
    )


def gather(value: Any) -> list[Any]:
  """The values of all processes, in their order; each is anything that JSON can hold."""
  if jax.process_count() == 1:
    return [value]
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  lengths = multihost_utils.process_allgather(np.array(text.size)).tolist()
  width = 1 << max(lengths).bit_length()  # few different widths, few programs
  padded = np.zeros(width, np.uint8)
  padded[: text.size] = text
  rows = multihost_utils.process_allgather(padded)
  return [json.loads(bytes(row[:n])) for row, n in zip(rows, lengths, strict=True)]


def _read_variables() -> tuple[str | None, int | None, int | None]:
  address, count, index = (os.environ.get(name) for name in _VARIABLES)
  if (address, count, index) == (None, None, None):
    return None, None, None
  if address and count and index and count.isdigit() and index.isdigit():
    return address, int(count), int(index)
  raise ValueError(
    f"{', '.join(_VARIABLES)} must all be set, the last two to numbers, or none of them; got "
    f"{address!r}, {count!r}, {index!r}."
  )


def _ask_to_stop(signum: int, frame: Any) -> None:
  del signum, frame
  global _asked_to_stop
  _asked_to_stop = True


def _digests(settings: Mapping[str, Any]) -> dict[str, str]:
  """A digest of the code, and one of each section of the settings."""
  root = pathlib.Path(blt_jax.__file__).parent
  code = hashlib.sha256()
  for path in sorted(root.rglob("*.py")):
    code.update(str(path.relative_to(root)).encode() + path.read_bytes())
  sections = {f"config.{k}": json.dumps(v, sort_keys=True) for k, v in settings.items()}
  digests = {k: hashlib.sha256(v.encode()).hexdigest()[:16] for k, v in sections.items()}
  return {"the code": code.hexdigest()[:16]} | digests
