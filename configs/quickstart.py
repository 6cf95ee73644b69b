"""A small BLT on a laptop: real text, no download, minutes on two CPU cores.

  python -m blt_jax.train --config=configs/quickstart.py:entropy
  python -m blt_jax.calibrate --run=runs/quickstart/entropy --target_bytes_per_patch=4.5
  python -m blt_jax.train --config=configs/quickstart.py

`launch/quickstart.sh` runs all of it.
"""

from blt_jax.config import get_config as get_default


def get_config(stage="blt"):
  config = get_default("byte_lm" if stage == "entropy" else "blt")
  config.workdir = f"runs/quickstart/{stage}"
  config.data.seq_len = 512
  config.data.batch_size = 8
  config.optimizer.learning_rate = 3e-3
  config.schedule.warmup_steps = 30
  config.schedule.min_ratio = 0.02
  config.model.dtype = "float32"
  config.checkpoint.every_steps = 200
  config.logging.every_steps = 20
  config.eval.every_steps = 1_000_000  # at the end only
  if stage == "entropy":
    config.num_steps = 400
    set_stack(config.model.transformer, dim=96, num_layers=2, num_heads=3, window=128)
  else:
    config.num_steps = 400
    config.data.num_patches = 128
    config.patching.entropy_model = "runs/quickstart/entropy"
    set_stack(config.model.encoder, dim=128, num_layers=1, num_heads=4, window=128)
    set_stack(config.model.latent, dim=256, num_layers=4, num_heads=4)
    set_stack(config.model.decoder, dim=128, num_layers=2, num_heads=4, window=128)
    config.model.encoder_cross.num_heads = 4
    config.model.decoder_cross.num_heads = 4
    config.model.hash_vocab_size = 8192
  return config


def set_stack(section, **sizes):
  section.update(sizes)
  section.mlp_multiple_of = 32
  section.unroll = True
