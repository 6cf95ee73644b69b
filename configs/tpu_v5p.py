r"""The paper's 1B BLT on v5p-128, its 8B on v5p-256 (`:8b`), 16M bytes per step.

  python -m blt_jax.train --config=configs/tpu_v5p.py:8b --config.data.path=/gcs/scored \
    --config.patching.entropy_model=/gcs/runs/entropy --config.workdir=gs://BUCKET/runs/8b

`python -m blt_jax.train_compile --config=configs/tpu_v5p.py --topology=v5p-128` says what it
needs. On larger slices "data" grows; accumulate can shrink with it.
"""

from configs import pods


def get_config(size="1b"):
  config = pods.get_recipe(size)
  config.workdir = f"runs/tpu_v5p_{size}"
  # Two dimensions of the torus, 4 x 4 or 4 x 8: over three, gathers would cost twice.
  config.mesh.fsdp = {"1b": 16, "8b": 32}[size]
  config.optimizer.accumulate = 4  # parts of 64k bytes per chip, or of 32k
  return config
