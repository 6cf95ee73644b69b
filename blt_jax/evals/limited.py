"""Runs a Python file with limits: a program of its own, which imports nothing of the project.

  python -I limited.py PROCESSES SECONDS MEMORY_BYTES FILE_BYTES DESCRIPTOR PROGRAM

Writes a byte to the descriptor when all limits hold.
"""

import os
import resource
import sys

_OPEN_FILES = 64


def main() -> None:
  """Limits this process and all that it starts, and becomes the program."""
  processes, seconds, memory, size, begun = map(int, sys.argv[1:6])
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
  os.write(begun, b".")
  os.close(begun)
  os.execv(sys.executable, [sys.executable, "-I", sys.argv[6]])


if __name__ == "__main__":
  main()
