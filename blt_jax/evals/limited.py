"""Runs a Python file with limits: a program of its own, which imports nothing of the project.

  python -I limited.py PROCESSES SECONDS MEMORY_BYTES FILE_BYTES DISK_BYTES DESCRIPTOR PROGRAM

Writes a byte to the descriptor when all limits hold. With DISK_BYTES, in a mount namespace, the
working folder is the only one that can be written, and is in memory.
"""

import ctypes
import os
import resource
import struct
import sys

BEGUN = b"."
_OPEN_FILES = 64
_NUM_FILES = 4096
_SHARED_MEMORY = "/dev/shm"  # where Python has its semaphores

# Of Linux: mount(2), mount_setattr(2)
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE, _READ_ONLY = 442, -100, 0x8000, 1
_NO_SUID_NO_DEVICES = 2 | 4


def main() -> None:
  """Limits this process and all that it starts, and becomes the program."""
  processes, seconds, memory, size, disk, begun = map(int, sys.argv[1:7])
  if disk:
    confine(disk)
  for name, most in (
    (resource.RLIMIT_CPU, seconds),
    (resource.RLIMIT_AS, memory),
    (resource.RLIMIT_FSIZE, size),
    (resource.RLIMIT_NOFILE, _OPEN_FILES),
    (resource.RLIMIT_NPROC, processes),
    (resource.RLIMIT_CORE, 0),
  ):
    hard = resource.getrlimit(name)[1]
    least = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(name, (least, least))
  os.write(begun, BEGUN)
  os.execv(sys.executable, [sys.executable, "-I", sys.argv[7]])


def confine(disk: int) -> None:
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
  options = f"size={disk},nr_inodes={_NUM_FILES}".encode()
  for place in (folder, _SHARED_MEMORY):
    if os.path.isdir(place):
      args = (b"tmpfs", place.encode(), b"tmpfs", _NO_SUID_NO_DEVICES, options)
      _check(libc.mount(*args))
  os.chdir(folder)


def _check(status: int) -> None:
  if status:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))


if __name__ == "__main__":
  main()
