"""Settings of runs that train in seconds."""

from ml_collections import ConfigDict

from blt_jax import config as settings


def tiny_config(kind: str, **settings_of_run) -> ConfigDict:
  """A run of tiny models in float32, which logs every step."""
  config = settings.get_config(kind)
  tiny = dict(dim=16, num_layers=1, num_heads=2, window=8, mlp_multiple_of=8)
  if kind == "blt":
    for stack in (config.model.encoder, config.model.latent, config.model.decoder):
      stack.update(tiny)
    config.model.latent.update(dim=32, window=None)
    config.model.encoder_cross.num_heads = config.model.decoder_cross.num_heads = 2
    config.model.update(hash_vocab_size=64, hash_sizes=(3, 4))
  else:
    config.model.transformer.update(tiny)
  config.model.dtype = "float32"
  config.data.update(batch_size=8, seq_len=32, num_patches=33)
  config.logging.update(every_steps=1, tensorboard=False)
  config.update(settings_of_run)
  return config
