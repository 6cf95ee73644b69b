"""The paper's recipe (section 4), for the configs of the generations of TPUs.

Text is scored once by an entropy model (`blt_jax.score_entropies`) and read with its
entropies, so that hosts only pack. Scored text and the entropy model's run lie where every
host sees them: at gs://, if all the scored text fits on the disk of a host, which copies it;
else as files in a bucket mounted by Cloud Storage FUSE.
"""

from ml_collections import ConfigDict

from configs import blt

CONTEXTS = {"1b": 8192, "8b": 16_384}  # bytes
BATCH_BYTES = 2**24


def get_recipe(size: str) -> ConfigDict:
  """Settings of a size, "1b" or "8b", but for the mesh.

  Raises:
    ValueError: an unknown size.
  """
  if size not in CONTEXTS:
    raise ValueError(f"Unknown size {size!r}; choose one of {sorted(CONTEXTS)}.")
  config = blt.get_config(size)
  config.num_steps = 60_000  # a trillion bytes
  config.data.path = "/gcs/scored"
  config.patching.entropies = "stored"
  config.patching.entropy_model = "/gcs/runs/entropy"
  config.data.seq_len = CONTEXTS[size]
  config.data.batch_size = BATCH_BYTES // CONTEXTS[size]
  # 4.5 bytes per patch, in whole multiples of 32.
  config.data.num_patches = -(-CONTEXTS[size] * 2 // 9 // 32) * 32
  config.data.num_workers = 16
  config.optimizer.learning_rate = 4e-4
  config.schedule.warmup_steps = 2000
  for stack in (config.model.encoder, config.model.latent, config.model.decoder):
    stack.remat = "matmuls"
  return config
