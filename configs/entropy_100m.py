r"""The 100M entropy model of Meta's code: 14 layers of 768, a window of 512 bytes.

python -m blt_jax.train --config=configs/entropy_100m.py --config.data.path=PATH \
    --config.workdir=runs/entropy_100m
"""

from blt_jax.config import get_config as get_default


def get_config():
  config = get_default("byte_lm")  # whose default sizes are these
  config.data.seq_len = 8192
  config.schedule.warmup_steps = 500
  config.optimizer.clip_norm = 10.0
  return config
