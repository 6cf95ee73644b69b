"""The paper's 4B BLT: `configs/blt.py:4b`."""

from configs import blt


def get_config():
  return blt.get_config("4b")
