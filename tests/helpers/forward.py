"""Compiled runs of a model that several tests share."""

import functools

import flax.linen as nn
import flax.traverse_util
import jax
import numpy as np

from blt_jax import patching
from blt_jax.models.blt import BLT
from blt_jax.models.byte_lm import ByteLM
from blt_jax.models.config import BLTConfig, CrossAttentionConfig, TransformerConfig
from blt_jax.ops import losses


@functools.partial(jax.jit, static_argnums=0)
def logits_of(config, params, tokens, lengths, ngram_ids=None, states=None):
  return BLT(config).apply({"params": params}, tokens, lengths, ngram_ids, states)


@functools.partial(jax.jit, static_argnums=0)
def entropies_of(config, params, tokens):
  return losses.entropy_nats(ByteLM(config).apply({"params": params}, tokens))


@functools.partial(jax.jit, static_argnums=0)
def intermediates(config, params, tokens, lengths):
  """Every array between bytes and logits that the references stored."""

  def run(model):
    seq_len = tokens.shape[1]
    ids = patching.patch_ids(lengths, seq_len)
    decoder_ids = patching.decoder_patch_ids(lengths, seq_len)
    states, patches = model.encode(tokens, ids, lengths.shape[1])
    latents = model.think(tokens, patches, ids)
    return dict(
      input_embeds=model.embedder(tokens),
      patch_ids=ids,
      decoder_patch_ids=decoder_ids,
      encoder_hidden=states,
      patches=patches,
      global_hidden=latents,
      logits=model.decode(tokens, states, latents, decoder_ids, ids),
    )

  return nn.apply(run, BLT(config))({"params": params})


def masked_loss(config, params, tokens, lengths, targets, mask):
  logits = BLT(config).apply({"params": params}, tokens, lengths)
  token_losses = losses.cross_entropy_nats(logits, targets) * mask
  return token_losses.sum() / mask.sum(), token_losses


loss_and_gradient = jax.jit(
  jax.value_and_grad(masked_loss, argnums=1, has_aux=True), static_argnums=0
)


def pad_lengths(lengths, seq_len, num_patches):
  """Widens [B, P] to `num_patches`; bytes that are added form one patch on the right."""
  padded = np.zeros((len(lengths), num_patches), np.int32)
  for row, used in zip(padded, lengths, strict=True):
    used = used[used > 0]
    row[: len(used)] = used
    row[len(used)] += seq_len + 1 - used.sum()
  return padded


def foreign_names(entries, tree):
  """A tree of our parameters as flat arrays with the reference's names."""
  flat = flax.traverse_util.flatten_dict(tree, sep="/")
  return {k: v for e in entries for k, v in e.split(np.asarray(flat[e.path]))}


def stack(dim, num_layers, **changes):
  return TransformerConfig(dim=dim, num_layers=num_layers, **{
      "num_heads": 4, "mlp_multiple_of": 16, "rope_theta": 500_000.0, **changes})  # fmt: skip


TINY = BLTConfig(
  encoder=stack(16, 1, window=5),
  latent=stack(32, 1),
  decoder=stack(16, 1, window=5),
  encoder_cross=CrossAttentionConfig(4, all_layers=True),
  decoder_cross=CrossAttentionConfig(4, all_layers=True),
  hash_sizes=(2, 3),
  hash_vocab_size=50,
)


def init(model, *inputs):
  """New parameters; the generator "rbg" compiles fastest."""
  key = jax.random.key(0, impl="rbg")
  return nn.meta.unbox(jax.jit(model.init)(key, *inputs))["params"]
