"""A small BLT on a laptop: real text, no download, minutes on two CPU cores.

  python -m blt_jax.train --config=configs/quickstart.py:entropy
  python -m blt_jax.calibrate --run=runs/quickstart/entropy --target_bytes_per_patch=4.5
  python -m blt_jax.train --config=configs/quickstart.py

`launch/quickstart.sh` runs all of it.
"""

from blt_jax.config import get_config as get_default


def get_config(stage="blt"):
  if stage not in ("blt", "entropy"):
    raise ValueError(f"Unknown stage {stage!r}; choose 'blt' or 'entropy'.")
  config = get_default("byte_lm" if stage == "entropy" else "blt")
  config.workdir = f"runs/quickstart/{stage}"
  config.data.max_document_bytes = 2048  # so that a short run sees parts of many files
  config.data.seq_len = 1024
  config.data.batch_size = 2
  config.optimizer.learning_rate = 4e-3
  config.schedule.warmup_steps = 50
  config.schedule.min_ratio = 0.02
  config.model.dtype = "float32"
  config.checkpoint.every_steps = 500
  config.logging.every_steps = 50
  config.eval.every_steps = 1_000_000  # at the end only
  config.eval.max_batches = 100
  if stage == "entropy":
    config.num_steps = 700
    set_stack(config.model.transformer, dim=96, num_layers=2, num_heads=3, window=32)
  else:
    config.num_steps = 800
    config.data.num_patches = 228  # 4.5 bytes each
    config.patching.entropy_model = "runs/quickstart/entropy"
    set_stack(config.model.encoder, dim=64, num_layers=1, num_heads=2, window=64)
    set_stack(config.model.latent, dim=128, num_layers=3, num_heads=2)
    set_stack(config.model.decoder, dim=64, num_layers=1, num_heads=2, window=64)
    config.model.encoder_cross.num_heads = 2
    config.model.decoder_cross.num_heads = 2
    config.model.hash_vocab_size = 8192
  return config


def set_stack(section, **sizes):
  section.update(sizes)
  section.mlp_multiple_of = 32
  section.unroll = True
