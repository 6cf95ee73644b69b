r"""An entropy model of the blocks of a small Llama: `configs/entropy_from_llama.py:PATH`.

PATH is a folder of Hugging Face, or the run that `python -m blt_jax.convert --from=llama`
makes of it. Embeddings of bytes and the output are fresh, and a window of 512 bytes is set.
Without a path the sizes are those of SmolLM2 135M, and everything is fresh.

  python -m blt_jax.train --config=configs/entropy_from_llama.py:PATH \
    --config.data.path=TEXT --config.workdir=runs/entropy
"""

import dataclasses

from ml_collections import ConfigDict

from blt_jax.config import set_stack
from blt_jax.models.config import TransformerConfig
from blt_jax.runs.parameters import find_blocks
from configs import entropy_100m

SMOLLM2_135M = TransformerConfig(
  576, num_layers=30, num_heads=9, num_kv_heads=3, mlp_dim=1536, rope_theta=1e5
)


def get_config(path: str = "") -> ConfigDict:
  """Settings with the blocks of a folder.

  Raises:
    FileNotFoundError: there is none.
    ValueError: it is another model.
  """
  blocks = find_blocks(path) if path else SMOLLM2_135M
  config = entropy_100m.get_config()
  set_stack(config.model.transformer, dataclasses.replace(blocks, window=512))
  if path:
    config.init_from = path
    config.init_parts.transformer = "transformer"
  return config
