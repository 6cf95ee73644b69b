"""Runs a Python file with limits: a program of its own, which imports nothing of the project.

  python -I limited.py '{"seconds": 11, ...}' PROGRAM

It takes the terms of `sandbox`, writes a byte to their descriptor when all limits hold, starts
the program, and ends with it, or when its time is over.
"""

import ctypes
import json
import os
import resource
import signal
import struct
import sys

BEGUN = b"."
CPU_TIME_IS_OVER = 128 + signal.SIGXCPU  # exit status
_OPEN_FILES = 256
_NUM_FILES = 4096
_SHARED_MEMORY = "/dev/shm"  # where Python has its semaphores

# Of Linux: mount(2), mount_setattr(2)
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE, _READ_ONLY = 442, -100, 0x8000, 1
_NO_SUID_NO_DEVICES = 2 | 4


def main() -> None:
  """Limits this process and all that it starts, and starts the program."""
  terms = json.loads(sys.argv[1])
  if terms["confined"]:
    confine(terms["disk_bytes"])
  for name, most, more in (
    (resource.RLIMIT_CPU, terms["seconds"], 1),  # after the signal that says so
    (resource.RLIMIT_AS, terms["memory_bytes"], 0),
    (resource.RLIMIT_FSIZE, terms["file_bytes"], 0),
    (resource.RLIMIT_NOFILE, _OPEN_FILES, 0),
    (resource.RLIMIT_NPROC, terms["processes"], 0),
    (resource.RLIMIT_CORE, 0, 0),
  ):
    hard = resource.getrlimit(name)[1]
    least = [n if hard == resource.RLIM_INFINITY else min(n, hard) for n in (most, most + more)]
    resource.setrlimit(name, (least[0], least[1]))
  os.write(terms["descriptor"], BEGUN)
  sys.exit(supervise([sys.executable, "-I", sys.argv[2]], terms["seconds"]))


def confine(disk_bytes: int) -> None:
  """Makes all folders read-only but the working one, which is new, of so many bytes.

  Raises:
    OSError: the kernel refuses, or is older than Linux 5.12.
  """
  libc = ctypes.CDLL(None, use_errno=True)
  folder = os.getcwd()
  attributes = struct.pack("4Q", _READ_ONLY, 0, 0, 0)
  _check(
    libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, b"/", _AT_RECURSIVE, attributes, len(attributes))
  )
  options = f"size={disk_bytes},nr_inodes={_NUM_FILES}".encode()
  places = [folder]
  if os.path.isdir(_SHARED_MEMORY) and not folder.startswith(_SHARED_MEMORY):
    places.append(_SHARED_MEMORY)
  for place in places:
    args = (b"tmpfs", os.fsencode(place), b"tmpfs", _NO_SUID_NO_DEVICES, options)
    _check(libc.mount(*args))
  os.chdir(folder)


def supervise(command: list[str], seconds: int) -> int:
  """Runs a command for so many seconds of the clock at most; its exit status, as of a shell.

  Should whoever started this be gone by then, nothing stays: with this process ends its
  namespace.
  """
  signal.pthread_sigmask(signal.SIG_SETMASK, [signal.SIGCHLD])
  child = os.fork()
  if child == 0:
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.execv(command[0], command)
  signal.sigtimedwait([signal.SIGCHLD], seconds)
  done, status = os.waitpid(child, os.WNOHANG)
  if not done:
    os.kill(child, signal.SIGKILL)
    return 128 + signal.SIGKILL
  code = os.waitstatus_to_exitcode(status)
  return code if code >= 0 else 128 - code


def _check(status: int) -> None:
  if status:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))


if __name__ == "__main__":
  main()
