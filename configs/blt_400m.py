r"""The paper's 400M BLT.

Set `data.path` to text and `patching.entropy_model` to the run of an entropy model:

  python -m blt_jax.train --config=configs/blt_400m.py --config.data.path=PATH \
    --config.patching.entropy_model=runs/entropy_100m --config.workdir=runs/blt_400m
"""

from blt_jax.config import get_config as get_default
from blt_jax.config import set_blt_size


def get_config():
  config = get_default("blt")
  config.schedule.min_ratio = 0.0  # paper, section 4: cosine to 0
  set_blt_size(
    config.model,
    local=(768, 12),
    latent=(1280, 10, 24),
    decoder_layers=7,
    cross_heads=10,
    vectors_per_patch=2,
  )
  return config
