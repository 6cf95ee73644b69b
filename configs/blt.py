r"""The sizes of the paper's table of models: `configs/blt.py:400m`, `:1b`, `:2b`, `:4b`, `:8b`.

Set `data.path` to text and `patching.entropy_model` to the run of an entropy model:

  python -m blt_jax.train --config=configs/blt.py:1b --config.data.path=PATH \
    --config.patching.entropy_model=runs/entropy_100m --config.workdir=runs/blt_1b
"""

from ml_collections import ConfigDict

from blt_jax.config import get_config as get_default
from blt_jax.config import set_blt_size

# Width and heads of the local models; width, heads and layers of the latent transformer;
# layers of the decoder; heads of the cross-attentions; vectors per patch.
SIZES = {
  "400m": ((768, 12), (1280, 10, 24), 7, 10, 2),
  "1b": ((1024, 16), (2048, 16, 25), 9, 16, 2),
  "2b": ((1024, 16), (2560, 20, 26), 9, 16, 3),
  "4b": ((1024, 16), (3072, 24, 36), 9, 16, 3),
  "8b": ((1280, 20), (4096, 32, 32), 6, 20, 4),
}


def get_config(size: str = "1b") -> ConfigDict:
  """Settings of a size.

  Raises:
    ValueError: an unknown size.
  """
  if size not in SIZES:
    raise ValueError(f"Unknown size {size!r}; choose one of {sorted(SIZES)}.")
  config = get_default("blt")
  config.schedule.min_ratio = 0.0  # paper, section 4: cosine to 0
  set_blt_size(config.model, *SIZES[size])
  return config
