r"""The 100M entropy model on v4-32 (or any slice of up to 256 chips), 2M bytes per step.

  python -m blt_jax.train --config=configs/tpu_entropy.py --config.data.path=gs://BUCKET/text \
    --config.workdir=gs://BUCKET/runs/entropy

Parameters are small enough to be whole on every chip.
"""

from configs import entropy_100m


def get_config():
  config = entropy_100m.get_config()
  config.workdir = "runs/tpu_entropy"
  config.num_steps = 100_000  # 210 billion bytes
  config.data.path = "gs://BUCKET/text"
  config.data.batch_size = 256
  config.schedule.min_ratio = 0.0
  config.optimizer.accumulate = 2  # parts of 64k bytes per chip
  config.model.transformer.remat = "matmuls"
  return config
