r"""The paper's 1B BLT on v6e-64, its 8B on v6e-256 (`:8b`), 16M bytes per step.

  python -m blt_jax.train --config=configs/tpu_v6e.py:8b --config.data.path=/gcs/scored \
    --config.patching.entropy_model=/gcs/runs/entropy --config.workdir=gs://BUCKET/runs/8b

`python -m blt_jax.train_compile --config=configs/tpu_v6e.py --topology=v6e-64` says what it
needs. It also trains on v5e with less memory: --config.optimizer.accumulate=32.
"""

from configs import pods


def get_config(size="1b"):
  config = pods.get_recipe(size)
  config.workdir = f"runs/tpu_v6e_{size}"
  config.mesh.data = 1
  config.mesh.fsdp = {"1b": 64, "8b": 256}[size]  # a torus of two dimensions: the slice
  config.optimizer.accumulate = {"1b": 16, "8b": 4}[size]  # parts of 16k bytes per chip
  return config
