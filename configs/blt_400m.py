"""The paper's 400M BLT: `configs/blt.py:400m`."""

from configs import blt


def get_config():
  return blt.get_config("400m")
