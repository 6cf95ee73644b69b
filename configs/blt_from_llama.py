r"""A BLT whose latent transformer is a Llama: `configs/blt_from_llama.py:PATH`.

PATH is a folder of Hugging Face, or the run that `python -m blt_jax.convert --from=llama`
makes of it. All but the latent transformer is fresh, and that learns at a tenth of the rate,
as in the paper. Without a path the sizes are those of Llama 3.2 1B, and everything is fresh.

  python -m blt_jax.train --config=configs/blt_from_llama.py:PATH --config.data.path=TEXT \
    --config.patching.entropy_model=runs/entropy --config.workdir=runs/blt_from_llama
"""

from ml_collections import ConfigDict

from blt_jax.config import get_config as get_default
from blt_jax.config import set_stack
from blt_jax.models.config import TransformerConfig
from blt_jax.ops import rope
from blt_jax.runs.parameters import find_blocks

LLAMA_1B = TransformerConfig(
  2048, num_layers=16, num_heads=32, num_kv_heads=8, mlp_dim=8192, rope_theta=5e5,
  rope_scaling=rope.Scaling(factor=32.0),
)  # fmt: skip
WIDEST, HEAD = 1024, 64  # width of local models, and of their heads


def get_config(path: str = "") -> ConfigDict:
  """Settings around the Llama of a folder.

  Raises:
    FileNotFoundError: there is none.
    ValueError: it is another model, or its width has no part of whole heads.
  """
  blocks = find_blocks(path) if path else LLAMA_1B
  config = get_default("blt")
  set_stack(config.model.latent, blocks)
  fits = [k for k in range(1, 65) if blocks.dim % (k * HEAD) == 0 and blocks.dim <= k * WIDEST]
  if not fits:
    raise ValueError(
      f"The width {blocks.dim} of {path} is no multiple of {HEAD}, the width of a head of the "
      "local models; choose another Llama."
    )
  config.model.vectors_per_patch = vectors = fits[0]
  for stack in (config.model.encoder, config.model.decoder):
    stack.dim, stack.num_heads = blocks.dim // vectors, blocks.dim // vectors // HEAD
  for cross in (config.model.encoder_cross, config.model.decoder_cross):
    cross.num_heads = config.model.encoder.num_heads
  if path:
    config.init_from = path
    config.init_parts.latent = "transformer"
    config.optimizer.groups = {"latent/transformer/*": {"learning_rate_scale": 0.1}}
  return config
