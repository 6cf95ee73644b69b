"""The paper's 8B BLT: `configs/blt.py:8b`."""

from configs import blt


def get_config():
  return blt.get_config("8b")
