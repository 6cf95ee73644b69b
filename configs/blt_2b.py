"""The paper's 2B BLT: `configs/blt.py:2b`."""

from configs import blt


def get_config():
  return blt.get_config("2b")
