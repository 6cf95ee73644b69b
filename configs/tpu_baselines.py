r"""What a BLT is compared with, a billion parameters each, on v4-128, 4M bytes per step.

  python -m blt_jax.train --config=configs/tpu_baselines.py:megabyte \
    --config.data.path=gs://BUCKET/text --config.workdir=gs://BUCKET/runs/megabyte

Names are `megabyte`, `spacebyte`, `flat` and `bpe`; the last reads the tokenizer of
`train_tokenizer`. `train_compile --config=configs/tpu_baselines.py:flat --topology=v4-128`
says what one needs.
"""

from blt_jax.config import get_config as get_default

SEQ_LEN = 8192  # bytes
STEP_BYTES = 2**22
BYTES_PER_PIECE = 4
WIDE = dict(dim=2048, num_layers=24, num_heads=16)


def get_config(name="megabyte"):
  if name not in BASELINES:
    raise ValueError(f"Unknown baseline {name!r}; choose one of {tuple(BASELINES)}.")
  kind, set_model = BASELINES[name]
  config = get_default(kind)
  config.workdir = f"runs/tpu_{name}"
  config.num_steps = 60_000  # a quarter of a trillion bytes
  config.data.path = "gs://BUCKET/text"
  config.data.seq_len = SEQ_LEN
  config.data.batch_size = STEP_BYTES // SEQ_LEN
  config.optimizer.learning_rate = 4e-4
  config.optimizer.accumulate = 4  # parts of 16k bytes per chip
  config.schedule.warmup_steps = 2000
  config.mesh.fsdp = 16
  set_model(config)
  for section in config.model.values():
    if hasattr(section, "remat"):
      section.remat = "matmuls"
  return config


def megabyte(config):
  """The paper's 758M and 262M."""


def spacebyte(config):
  config.model.local_model.update(dim=1024, num_layers=8, num_heads=16, window=1024)
  config.model.global_model.update(WIDE)
  config.model.num_patches = 2048  # of 4 bytes each


def flat(config):
  config.model.transformer.update(WIDE, window=None)


def bpe(config):
  config.patching.tokenizer = "gs://BUCKET/bpe.model"
  config.model.vocab_size = 32_768
  config.model.transformer.update(WIDE, num_kv_heads=8)
  config.data.seq_len = SEQ_LEN // BYTES_PER_PIECE


BASELINES = {
  "megabyte": ("megabyte", megabyte),
  "spacebyte": ("spacebyte", spacebyte),
  "flat": ("byte_lm", flat),
  "bpe": ("bpe_lm", bpe),
}
