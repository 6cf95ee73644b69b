"""The paper's 1B BLT: `configs/blt.py:1b`."""

from configs import blt


def get_config():
  return blt.get_config("1b")
