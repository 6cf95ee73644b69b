"""A BLT for one GPU of 24 GB: a latent transformer of 200M, tables of 100,002 rows.

A step takes 17 GB. Set `data.path` to text and `patching.entropy_model` to the run of an
entropy model, as for `configs/blt.py`.
"""

from ml_collections import ConfigDict

from blt_jax.config import get_config as get_default
from blt_jax.config import set_blt_size


def get_config() -> ConfigDict:
  """Settings of the run."""
  config = get_default("blt")
  config.workdir = "runs/gpu_24gb"
  set_blt_size(
    config.model,
    local=(512, 8),
    latent=(1024, 16, 16),
    decoder_layers=6,
    cross_heads=8,
    vectors_per_patch=2,
  )
  config.model.hash_vocab_size = 100_002
  config.data.batch_size = 32
  config.data.num_patches = 960
  config.optimizer.accumulate = 4  # parts of 8 rows
  for stack in (config.model.encoder, config.model.latent, config.model.decoder):
    stack.unroll = True
    stack.remat = "matmuls"
  return config
