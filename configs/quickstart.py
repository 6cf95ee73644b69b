r"""A small BLT on a laptop: real text, no download, minutes on two CPU cores.

  python -m blt_jax.train --config=configs/quickstart.py:entropy
  python -m blt_jax.calibrate --run=runs/quickstart/entropy --target_bytes_per_patch=4.5
  python -m blt_jax.train --config=configs/quickstart.py

`launch/quickstart.sh` runs all of it. The baselines of docs/baselines.md, of as many FLOPs per
byte, need one command each:

  python -m blt_jax.train --config=configs/quickstart.py:megabyte

So does the BLT of docs/models.md that measures entropies inside:

  python -m blt_jax.train --config=configs/quickstart.py:end_to_end

Those that run the entropy model in their step need what the first two commands make:

  python -m blt_jax.train --config=configs/quickstart.py:entropy_states

And the one with a boundary head learns from stored entropies:

  python -m blt_jax.score_entropies --model=runs/quickstart/entropy --input=stdlib \
    --output=runs/quickstart/scored
  python -m blt_jax.train --config=configs/quickstart.py:boundary_head

And one that goes on from the BLT with patches of its own entropies, on their scores:

  python -m blt_jax.score_entropies --model=runs/quickstart/blt --input=stdlib \
    --output=runs/quickstart/own_scored
  python -m blt_jax.calibrate --run=runs/quickstart/own_scored --target_bytes_per_patch=4.5
  python -m blt_jax.train --config=configs/quickstart.py:own_entropies

The one of several resolutions needs two thresholds:

  python -m blt_jax.calibrate --run=runs/quickstart/entropy --target_bytes_per_patch=4.5,9
  python -m blt_jax.train --config=configs/quickstart.py:mixture

But for the Llama over BPE pieces, whose tokenizer has to be trained:

  python -m blt_jax.train_tokenizer --config=configs/quickstart.py:bpe
  python -m blt_jax.train --config=configs/quickstart.py:bpe
"""

from blt_jax.config import get_config as get_default


def get_config(stage="blt"):
  if stage not in STAGES:
    raise ValueError(f"Unknown stage {stage!r}; choose one of {tuple(STAGES)}.")
  kind, set_model = STAGES[stage]
  config = get_default(kind)
  config.workdir = f"runs/quickstart/{stage}"
  config.num_steps = 800
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
  set_model(config)
  return config


def entropy(config):
  config.num_steps = 700
  set_stack(config.model.transformer, dim=96, num_layers=2, num_heads=3, window=32)


def blt(config, latent_dim=128, latent_layers=3):
  config.data.num_patches = 228  # 4.5 bytes each
  config.patching.entropy_model = "runs/quickstart/entropy"
  set_blt_stacks(config.model, latent_dim, latent_layers)


def set_blt_stacks(model, latent_dim=128, latent_layers=3):
  set_stack(model.encoder, dim=64, num_layers=1, num_heads=2, window=64)
  set_stack(model.latent, dim=latent_dim, num_layers=latent_layers, num_heads=2)
  set_stack(model.decoder, dim=64, num_layers=1, num_heads=2, window=64)
  model.encoder_cross.num_heads = model.decoder_cross.num_heads = 2
  model.hash_vocab_size = 8192


def device_entropies(config):
  blt(config)
  config.patching.entropies = "device"
  config.data.num_patches = 344  # half as many to spare, since rows are filled with bytes


def entropy_states(config):
  device_entropies(config)
  config.model.entropy_state_dim = 96  # the width of `entropy`


def boundary_head(config):
  blt(config)
  config.data.path = "runs/quickstart/scored"
  config.patching.entropies = "stored"
  config.model.boundary_weight = 1.0


def own_entropies(config):
  blt(config)
  config.init_from = "runs/quickstart/blt"
  config.num_steps = 150
  config.optimizer.learning_rate = 2e-3
  config.data.path = "runs/quickstart/own_scored"
  config.patching.update(entropies="stored", entropy_model="")  # what made the scores


def mixture(config):
  blt(config, latent_layers=6)
  config.model.num_patches = 128  # for patches of 9 bytes in the mean, with some to spare


def end_to_end(config):
  set_blt_stacks(config.model, latent_layers=2)
  config.model.num_patches = 344  # for patches of 4.5 bytes in the mean, with half to spare
  set_stack(config.model.predictor, dim=32, num_layers=3, num_heads=2, mlp_dim=32, window=64)


def static(config):
  blt(config, latent_layers=4)
  config.patching.update(scheme="static", patch_size=6, entropy_model="")
  config.data.num_patches = 172


def space(config):
  blt(config, latent_dim=132, latent_layers=6)
  config.patching.update(scheme="space", entropy_model="")
  config.data.num_patches = 128  # 8 bytes each in Python
  config.model.encoder_cross = config.model.decoder_cross = None
  config.model.hash_sizes = ()


def megabyte(config):
  set_stack(config.model.global_model, dim=128, num_layers=3, num_heads=2)
  set_stack(config.model.local_model, dim=88, num_layers=2, num_heads=2)
  config.model.max_patches = 128


def spacebyte(config):
  set_stack(config.model.local_model, dim=64, num_layers=2, num_heads=2, window=64)
  set_stack(config.model.global_model, dim=132, num_layers=6, num_heads=2)
  config.model.num_patches = 160  # Python needs 128 in the mean


def flat(config):
  set_stack(config.model.transformer, dim=72, num_layers=2, num_heads=2, window=None)


def flat_window(config):
  set_stack(config.model.transformer, dim=104, num_layers=2, num_heads=2, window=64)


def bpe(config):
  config.data.seq_len = 320  # pieces, of 3.2 bytes each
  config.patching.tokenizer = "runs/quickstart/bpe.model"
  config.model.vocab_size = 4096
  config.model.tie_embeddings = True
  set_stack(config.model.transformer, dim=112, num_layers=3, num_heads=2, num_kv_heads=1)


def set_stack(section, **sizes):
  section.update(sizes)
  section.mlp_multiple_of = 32
  section.unroll = True


STAGES = {  # kind of model, and what sets its sizes
  "blt": ("blt", blt),
  "entropy": ("byte_lm", entropy),
  "device_entropies": ("blt", device_entropies),
  "entropy_states": ("blt", entropy_states),
  "boundary_head": ("blt", boundary_head),
  "own_entropies": ("blt", own_entropies),
  "mixture": ("mixture", mixture),
  "end_to_end": ("end_to_end", end_to_end),
  "static": ("blt", static),
  "space": ("blt", space),
  "megabyte": ("megabyte", megabyte),
  "spacebyte": ("spacebyte", spacebyte),
  "flat": ("byte_lm", flat),
  "flat_window": ("byte_lm", flat_window),
  "bpe": ("bpe_lm", bpe),
}
