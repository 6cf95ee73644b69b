r"""The 100M entropy model on one GPU of 80 GB or more.

python -m blt_jax.train --config=configs/gpu_entropy.py --config.data.path=PATH
"""

from ml_collections import ConfigDict

from configs import entropy_100m


def get_config() -> ConfigDict:
  """Settings of the run."""
  config = entropy_100m.get_config()
  config.workdir = "runs/gpu_entropy"
  config.model.transformer.unroll = True
  return config
