"""N-grams of pixels in a BLT: nothing of a picture looks ahead."""

import dataclasses

import chex
import flax.linen as nn
import jax
import numpy as np
from forward import TINY
from golden_cases import FLOAT32
from uncached import random_params

from blt_jax import patching, tokenizer
from blt_jax.models.blt import BLT

SIZE = 2, 4, 3  # height, width, channels
CONFIG = dataclasses.replace(TINY, hash_sizes=(), pixel_ngrams=True, picture_size=SIZE)
RULE = patching.PatchingConfig("static", patch_size=100, max_patch_length=6)
PLACE = 13  # whose logits are looked at


@jax.jit
def run(params, tokens, lengths, added):
  """Logits [B, S, V], and of those at `PLACE` the gradient to what is added, [B, S, D]."""
  patch_ids = patching.patch_ids(lengths, tokens.shape[1])
  decoder_ids = patching.decoder_patch_ids(lengths, tokens.shape[1])

  def logits_of(added):
    def forward(model):
      x = model.embed(tokens) + added
      states, patches = model.encode_embeddings(tokens, x, patch_ids, lengths.shape[1])
      latents = model.think(tokens, patches, patch_ids)
      return model.decode(tokens, states, latents, decoder_ids, patch_ids)

    logits = nn.apply(forward, BLT(CONFIG))({"params": params})
    return abs(logits[:, PLACE]).sum(), logits

  (_, logits), gradient = jax.value_and_grad(logits_of, has_aux=True)(added)
  return logits, gradient


def test_logits_depend_on_no_later_byte():
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (2, 24)).astype(np.uint8)
  pixels[1, :PLACE] = pixels[0, :PLACE]  # ids are one place later, behind a BOS
  tokens = np.stack([tokenizer.encode(picture.tobytes()) for picture in pixels])
  lengths = patching.patch_lengths(tokens, RULE)
  added = np.zeros((*tokens.shape, CONFIG.encoder.dim), np.float32)
  logits, gradient = run(random_params(CONFIG), tokens, lengths, added)
  chex.assert_trees_all_close(logits[0, : PLACE + 1], logits[1, : PLACE + 1], **FLOAT32)
  assert (abs(logits[0, PLACE + 1 :] - logits[1, PLACE + 1 :]).max(axis=-1) > 1e-3).all()
  size = abs(gradient).max(axis=(0, 2))
  assert (size[PLACE + 1 :] == 0).all() and (size[PLACE - 3 : PLACE + 1] > 0).all()
