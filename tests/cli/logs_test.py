"""How programs end."""

import subprocess
import sys

_FINALISER = """
import os, signal, time, weakref
from blt_jax.cli import logs

class Thing:
  pass

def interrupted(reference):
  os.kill(os.getpid(), signal.SIGINT)
  time.sleep(1)

def main():
  thing = Thing()
  reference = weakref.ref(thing, interrupted)
  del thing
  time.sleep(60)

logs.run(main)
"""


def test_an_interrupt_within_a_finaliser_is_not_lost():
  done = subprocess.run([sys.executable, "-c", _FINALISER], capture_output=True, text=True)
  assert (done.returncode, done.stderr) == (130, "")
