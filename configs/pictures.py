"""A small BLT that learns pictures: two sets out of Python packages, or your own.

  pip install -e '.[images]'
  python -m blt_jax.train --config=configs/pictures.py:digits
  python -m blt_jax.train --config=configs/pictures.py:mnist
  python -m blt_jax.train --config=configs/pictures.py:folder --config.data.path=PATH

Patches are a few whole pixels each. With entropy patches instead:

  python -m blt_jax.train --config=configs/pictures.py:entropy
  python -m blt_jax.calibrate --run=runs/pictures/entropy --target_bytes_per_patch=4
  python -m blt_jax.train --config=configs/pictures.py:mnist_entropy
"""

from blt_jax.config import get_config as get_default

# Where pictures are; bytes of a row, rows of a batch; bytes of a patch, None: by entropies.
STAGES = {
  "digits": ("digits", 16 * 66, 2, 2),  # 8 x 8 bytes, BOS and EOS
  "mnist": ("mnist", 4 * 786, 1, 4),  # 28 x 28
  "mnist_entropy": ("mnist", 4 * 786, 1, None),
  "entropy": ("mnist", 4 * 786, 1, None),
  "folder": (".", 3074, 1, 6),  # up to 32 x 32 in colour
}


def get_config(stage="digits"):
  if stage not in STAGES:
    raise ValueError(f"Unknown stage {stage!r}; choose one of {tuple(STAGES)}.")
  path, seq_len, batch_size, patch_size = STAGES[stage]
  config = get_default("byte_lm" if stage == "entropy" else "blt")
  config.workdir = f"runs/pictures/{stage}"
  config.num_steps = 500
  config.data.format = "pictures"
  config.data.path = path
  config.data.heldout_fraction = 0.1
  config.data.seq_len = seq_len
  config.data.batch_size = batch_size
  config.optimizer.learning_rate = 4e-3
  config.schedule.warmup_steps = 50
  config.schedule.min_ratio = 0.02
  config.model.dtype = "float32"
  config.checkpoint.every_steps = 250
  config.logging.every_steps = 50
  config.eval.every_steps = 1_000_000  # at the end only
  if stage == "entropy":
    set_stack(config.model.transformer, dim=64, num_layers=2, num_heads=2, window=64)
    return config
  set_blt(config.model)
  if patch_size:
    set_patches(config, patch_size)
  else:
    config.patching.entropy_model = "runs/pictures/entropy"
  return config


def set_patches(config, patch_size):
  """Patches of whole pixels: one of the whole picture, cut after so many bytes."""
  config.patching.scheme = "static"
  config.patching.patch_size = 2**24
  config.patching.max_patch_length = patch_size
  config.data.num_patches = config.data.seq_len // patch_size + 32  # BOS and EOS stand alone


def set_blt(model):
  set_stack(model.encoder, dim=64, num_layers=1, num_heads=2, window=64)
  set_stack(model.latent, dim=128, num_layers=3, num_heads=2)
  set_stack(model.decoder, dim=64, num_layers=1, num_heads=2, window=64)
  model.encoder_cross.num_heads = model.decoder_cross.num_heads = 2
  model.hash_sizes = ()
  model.pixel_ngrams = True
  model.hash_vocab_size = 8192


def set_stack(section, **sizes):
  section.update(sizes)
  section.mlp_multiple_of = 32
  section.unroll = True
