r"""The models of the studies small and paper, and those of study_llama.py.

  python -m blt_jax.train --config=configs/study_models.py:spacebyte --config.data.path=PATH

Sizes are set so that the paper's count gives all the same 24 MFLOPs per byte within 3 %, where
entropy patches have 4.5 bytes, words 6.65 and pieces 3.23, as in English and code, half each.
Those around a Llama have about half as many.
"""

from blt_jax.config import get_config as get_default

SEQ_LEN = 4096  # bytes
BATCH_SIZE = 16


def get_config(name="blt"):
  if name not in MODELS:
    raise ValueError(f"Unknown model {name!r}; choose one of {tuple(MODELS)}.")
  kind, set_model = MODELS[name]
  config = get_default(kind)
  config.workdir = f"runs/study/{name}"
  config.data.seq_len = SEQ_LEN
  config.data.batch_size = BATCH_SIZE
  config.data.num_workers = 2
  config.optimizer.learning_rate = 1.8e-3
  config.schedule.min_ratio = 0.0
  set_model(config)
  return config


# --- BLT and its ablations


def blt(config, patch_size=4.5, latent=(512, 8), decoder_layers=4, encoder_layers=1, local=256):
  config.data.num_patches = round(SEQ_LEN / patch_size * 1.02 / 8) * 8
  sizes = dict(dim=local, num_heads=local // 64, window=512)
  set_stack(config.model.encoder, num_layers=encoder_layers, **sizes)
  set_stack(config.model.latent, dim=latent[0], num_layers=latent[1], num_heads=latent[0] // 64)
  set_stack(config.model.decoder, num_layers=decoder_layers, **sizes)
  config.model.encoder_cross.num_heads = local // 64
  config.model.decoder_cross.num_heads = local // 64
  config.model.hash_vocab_size = 50_000


def blt_6(config):
  blt(config, patch_size=6.0, latent=(512, 11))


def blt_8(config):
  blt(config, patch_size=8.0, latent=(512, 16))


def no_ngrams(config):
  blt(config)
  config.model.hash_sizes = ()


def no_cross(config):
  blt(config, latent=(512, 9))
  config.model.encoder_cross = config.model.decoder_cross = None


def lean(config):
  no_cross(config)
  config.model.hash_sizes = ()


def deep_encoder(config):
  blt(config, encoder_layers=2, decoder_layers=3)


def shallow_decoder(config):
  blt(config, latent=(512, 11), decoder_layers=2)


def static(config):
  blt(config)
  config.patching.update(scheme="static", patch_size=4.5)


def space(config):
  blt(config, patch_size=5.0, latent=(512, 12))  # slots for prose; English and code need fewer
  config.patching.scheme = "space"


def device_entropies(config):
  blt(config)
  config.patching.entropies = "device"
  config.data.num_patches = 1408  # half as many to spare, since rows are filled with bytes


def entropy_states(config, hash_sizes=(3, 4, 5, 6, 7, 8)):
  device_entropies(config)
  config.model.entropy_state_dim = 256  # the width of `entropy`
  config.model.hash_sizes = hash_sizes


def states_short_ngrams(config):
  entropy_states(config, hash_sizes=(3, 4, 5))


def states_no_ngrams(config):
  entropy_states(config, hash_sizes=())


def boundary_head(config):
  blt(config)
  config.patching.entropies = "stored"
  config.model.boundary_weight = 1.0


def mixture(config, hash_sizes=(3, 4, 5, 6, 7, 8)):
  blt(config, latent=(512, 17))  # over patches of 9 bytes in the mean
  config.model.num_patches = 512  # of them, with some to spare
  config.model.hash_sizes = hash_sizes


def mixture_no_ngrams(config):
  mixture(config, hash_sizes=())


def end_to_end(config):
  blt(config, latent=(512, 7))
  config.data.num_patches = None  # its batches bring none
  config.model.num_patches = 1408  # for patches of 4.5 bytes in the mean, with half to spare
  set_stack(config.model.predictor, dim=128, num_layers=2, num_heads=4, mlp_dim=128, window=512)


# --- What it is compared with


def megabyte(config):
  set_stack(config.model.global_model, dim=512, num_layers=13, num_heads=8)
  set_stack(config.model.local_model, dim=256, num_layers=8, num_heads=4)
  config.model.max_patches = SEQ_LEN // 8


def spacebyte(config):
  set_stack(config.model.local_model, dim=256, num_layers=8, num_heads=4, window=512)
  set_stack(config.model.global_model, dim=512, num_layers=9, num_heads=8)
  config.model.num_patches = 1024  # of 4 bytes each; English and code have 6.65


def flat(config):
  set_stack(config.model.transformer, dim=320, num_layers=9, num_heads=5, window=320)


def bpe(config):
  config.model.vocab_size = 8192
  set_stack(config.model.transformer, dim=512, num_layers=9, num_heads=8)


# --- A Llama, and BLTs around it; see study_llama.py


def llama(config):
  config.num_steps = 6000
  config.schedule.warmup_steps = 300
  config.data.seq_len = 1264  # pieces, of 3.23 bytes each
  config.patching.tokenizer = "runs/study/llama.model"
  config.model.vocab_size = 8192
  sizes = dict(dim=384, num_layers=8, num_heads=6)
  set_stack(config.model.transformer, rope_theta=5e5, **sizes)  # as a latent transformer has


def around_llama(config):
  blt(config, local=192, latent=(384, 8))


def distilled_llama(config):
  around_llama(config)
  config.num_steps = 600
  config.schedule.warmup_steps = 60
  config.data.num_patches = 1296  # pieces, and rows begin with two short ones
  config.patching.update(scheme="bpe", delimiters=False)
  config.init_from = config.distillation.teacher = "runs/study/llama"
  config.init_parts.latent = "transformer"
  config.optimizer.groups = {"latent/transformer/*": {"freeze": True}}


# --- What says where patches end


def entropy(config, dim=256, num_layers=4):
  config.num_steps = 4000
  config.schedule.warmup_steps = 200
  set_stack(config.model.transformer, dim=dim, num_layers=num_layers, num_heads=4, window=512)


def small_entropy(config):
  entropy(config, dim=128, num_layers=2)


def set_stack(section, **sizes):
  section.update(sizes)
  section.unroll = True


MODELS = {  # kind of model, and what sets its sizes
  "blt": ("blt", blt),
  "blt_6": ("blt", blt_6),
  "blt_8": ("blt", blt_8),
  "no_ngrams": ("blt", no_ngrams),
  "no_cross": ("blt", no_cross),
  "lean": ("blt", lean),
  "deep_encoder": ("blt", deep_encoder),
  "shallow_decoder": ("blt", shallow_decoder),
  "static": ("blt", static),
  "space": ("blt", space),
  "device_entropies": ("blt", device_entropies),
  "entropy_states": ("blt", entropy_states),
  "states_short_ngrams": ("blt", states_short_ngrams),
  "states_no_ngrams": ("blt", states_no_ngrams),
  "boundary_head": ("blt", boundary_head),
  "mixture": ("mixture", mixture),
  "mixture_no_ngrams": ("mixture", mixture_no_ngrams),
  "end_to_end": ("end_to_end", end_to_end),
  "megabyte": ("megabyte", megabyte),
  "spacebyte": ("spacebyte", spacebyte),
  "flat": ("byte_lm", flat),
  "bpe": ("bpe_lm", bpe),
  "llama": ("bpe_lm", llama),
  "around_llama": ("blt", around_llama),
  "distilled_llama": ("blt", distilled_llama),
  "entropy": ("byte_lm", entropy),
  "small_entropy": ("byte_lm", small_entropy),
}
