"""The quickstart's Llama over BPE pieces becomes a small BLT, in two stages.

  python -m blt_jax.train_tokenizer --config=configs/quickstart.py:bpe
  python -m blt_jax.train --config=configs/quickstart.py:bpe
  python -m blt_jax.train --config=configs/distillation.py:first
  python -m blt_jax.train --config=configs/distillation.py:second

The first stage teaches the local models to speak to the frozen blocks of the Llama as its
pieces do. The second trains everything on the patches of the quickstart's entropy model, the
blocks at half the rate, as Bolmo (arXiv 2512.15586) does. docs/weights.md has the details.
"""

from ml_collections import ConfigDict

from configs import quickstart

BLOCKS = "latent/transformer/*"
STAGES = ("first", "second")


def get_config(stage: str = "first") -> ConfigDict:
  """Settings of a stage.

  Raises:
    ValueError: there is no such stage.
  """
  if stage not in STAGES:
    raise ValueError(f"Unknown stage {stage!r}; choose one of {STAGES}.")
  config, teacher = quickstart.get_config(), quickstart.get_config("bpe")
  config.workdir = f"runs/quickstart/distillation_{stage}"
  config.model.latent = teacher.model.transformer
  for stack in (config.model.encoder, config.model.decoder):
    stack.dim = teacher.model.transformer.dim // config.model.vectors_per_patch
  if stage == "first":
    config.num_steps = 400
    config.data.num_patches = 340  # pieces of 3.2 bytes each
    config.patching.update(scheme="bpe", delimiters=False, entropy_model="")
    config.init_from = config.distillation.teacher = teacher.workdir
    config.init_parts.latent = "transformer"
    config.distillation.layers = 2
    config.optimizer.groups = {BLOCKS: {"freeze": True}}
  else:
    config.init_from = "runs/quickstart/distillation_first"
    config.optimizer.groups = {BLOCKS: {"learning_rate_scale": 0.5}}
  return config
