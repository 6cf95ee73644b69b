"""The 100M entropy model on one GPU, which takes 24 GB of it; set `data.path` to text."""

from ml_collections import ConfigDict

from configs import entropy_100m


def get_config() -> ConfigDict:
  """Settings of the run."""
  config = entropy_100m.get_config()
  config.workdir = "runs/gpu_entropy"
  config.model.transformer.unroll = True
  return config
