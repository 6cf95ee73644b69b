r"""A BLT on one H200 with AdamW in float32: `configs/gpu_h200.py:400m` or `:1b`.

  python -m blt_jax.train --config=configs/gpu_h200.py:400m --config.data.path=PATH \
    --config.patching.entropy_model=runs/entropy_100m

On several, `data.batch_size` grows with them; `mesh.fsdp=2` lets two share the parameters.
"""

from ml_collections import ConfigDict

from configs import blt

BATCH_SIZES = {"400m": 16, "1b": 8}  # rows on a GPU that fit as they are


def get_config(size: str = "400m") -> ConfigDict:
  """Settings of a size.

  Raises:
    ValueError: an unknown size.
  """
  if size not in BATCH_SIZES:
    raise ValueError(f"Unknown size {size!r}; choose one of {sorted(BATCH_SIZES)}.")
  config = blt.get_config(size)
  config.workdir = f"runs/gpu_h200_{size}"
  config.data.batch_size = BATCH_SIZES[size]
  config.data.num_patches = 960  # 4.3 bytes per patch
  for stack in (config.model.encoder, config.model.latent, config.model.decoder):
    stack.unroll = True
  return config
