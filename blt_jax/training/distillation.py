"""The first stage of a BLT around a Llama: local models that speak to it as its pieces do.

Patches are the teacher's pieces, and its blocks, frozen, are the latent transformer. So a
patch stands where a piece stood, and what the encoder makes of its bytes is compared with what
the piece's embedding becomes. Bolmo (arXiv 2512.15586), whose boundary loss is left out: a
`BLT` has no boundary head.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from blt_jax import patching
from blt_jax.models import blt, transformer
from blt_jax.models.byte_lm import ByteLM
from blt_jax.models.config import BPELMConfig, TransformerConfig
from blt_jax.models.extras import Extras
from blt_jax.ops import losses, patch_attention
from blt_jax.training import steps

_LEAST_SQUARE = 1e-12  # below it, a distance has no slope
_MOST_LOG = -1e-6  # above it, log(1 - p) has none


@dataclasses.dataclass(frozen=True)
class DistillationConfig:
  """How the losses of the first stage are weighed; each is a mean.

  Attributes:
    layers: so many first layers of the latent transformer are run on the bytes' patches, and
      then the states compared.
    state_weight: of the distance of these states from those of the pieces, over all patches.
    likelihood_weight: of the binary cross entropy between the probabilities of a piece, the
      teacher's and the product of its bytes', over all pieces.
    temperature: T; of both, the power 1 / T is compared.
    cross_entropy_weight: of the bytes' cross entropy, over all targets.
  """

  layers: int = 4
  state_weight: float = 1.0
  likelihood_weight: float = 1.0
  temperature: float = 5.0
  cross_entropy_weight: float = 1.0


def state_distances(states: jax.Array, wanted: jax.Array) -> jax.Array:
  """Distances |h - h'| / sqrt(D), not squared: states [B, P, D], twice -> float32 [B, P]."""
  squares = jnp.square(states.astype(jnp.float32) - wanted.astype(jnp.float32))
  return jnp.sqrt(jnp.maximum(squares.mean(axis=-1), _LEAST_SQUARE))


def likelihood_losses(nats: jax.Array, wanted: jax.Array, temperature: float) -> jax.Array:
  """Binary cross entropy between two probabilities to the power 1 / T.

  Args:
    nats: float32 [...], negative logarithms of the probabilities that learn.
    wanted: float32 [...], of those that they are to have.
    temperature: T.

  Returns:
    float32 [...], in nats; finite where a probability is 0 or 1.
  """
  p = jnp.exp(-wanted / temperature)
  log_q = jnp.minimum(-nats / temperature, _MOST_LOG)
  return -(p * log_q + (1 - p) * jnp.log(-jnp.expm1(log_q)))


def piece_nats(byte_nats: jax.Array, patch_lengths: jax.Array) -> jax.Array:
  """Nats of the piece after each patch: the sum of its bytes'.

  That the piece ends with them is not in it, so it is an approximation: no more than the nats
  of the piece would be.

  Args:
    byte_nats: float32 [B, S], of the target at each position.
    patch_lengths: int [B, P], rows sum to S + 1.

  Returns:
    float32 [B, P], of the piece in patch p + 1 at p.
  """
  readers = patching.decoder_patch_ids(patch_lengths, byte_nats.shape[1])
  return patch_attention.reduce_sum(byte_nats, readers, patch_lengths.shape[1])


def make_loss(model: blt.BLT, teacher: BPELMConfig, config: DistillationConfig) -> steps.Loss:
  """Builds the sum of the losses.

  Args:
    model: whose latent transformer has the teacher's blocks.
    teacher: of its blocks, embeddings and output.
    config: of the losses.

  Returns:
    A function of parameters, a batch and the teacher's other parameters ("embedding", "norm"
    and, untied, "output"). Beside what every batch has, it takes `teacher_ids` int [B, P], the
    piece in each patch, and `teacher_targets` int [B, P], the one in the next patch, both 0
    where it is not known; and `shares` float32 [B, 2] of `weigh`. Gradients of the teacher and
    of the latent transformer are zero. Metrics are those of `steps.sums`, and sums of
    `state_distance` over `compared_patches`, `piece_likelihood` over `compared_pieces`.
  """

  def loss(params: Any, batch: steps.Batch, head: Any) -> tuple[jax.Array, steps.Metrics]:
    head, blocks = jax.lax.stop_gradient((head, params["latent"]["transformer"]))
    documents = _documents(model, batch)
    first, rest = _cut(model.config.latent, blocks, config.layers)

    # --- The teacher reads pieces
    apply_teacher = ByteLM(teacher).apply
    embeddings = apply_teacher({"params": head}, batch["teacher_ids"], method="embed")
    wanted = first(embeddings.astype(model.config.dtype), documents)
    latents = rest(wanted, documents)
    pieces = apply_teacher({"params": head}, latents, method="predict")
    wanted_nats = losses.cross_entropy_nats(pieces, batch["teacher_targets"])

    # --- The student reads bytes, and writes them from the teacher's last states
    patches, logits = _read_and_write(model, params, batch, latents)
    metrics, byte_nats, _ = steps.score_logits(logits, Extras(), batch)
    nats = piece_nats(byte_nats, batch["patch_lengths"])

    # --- Losses of patches, of pieces, of bytes
    distances = state_distances(first(patches, documents), wanted)
    likelihoods = likelihood_losses(nats, wanted_nats, config.temperature)
    compared = {"state_distance": (distances, batch["teacher_ids"] > 0),
                "piece_likelihood": (likelihoods, batch["teacher_targets"] > 0)}  # fmt: skip
    rows = {name: jnp.where(mask, x, 0).sum(axis=1) for name, (x, mask) in compared.items()}
    sums = {name: row.sum() for name, row in rows.items()} | _counts(batch)
    total = (
      config.cross_entropy_weight * metrics["nats"]
      + config.state_weight * (rows["state_distance"] * batch["shares"][:, 0]).sum()
      + config.likelihood_weight * (rows["piece_likelihood"] * batch["shares"][:, 1]).sum()
    )
    return total, metrics | sums

  return loss


def _documents(model: blt.BLT, batch: steps.Batch) -> jax.Array | None:
  """Documents of patches, int [B, P], as the latent transformer knows them."""
  if not model.config.latent_document_masks:
    return None
  tokens, lengths = batch["tokens"], batch["patch_lengths"]
  patch_ids = patching.patch_ids(lengths, tokens.shape[1])
  return blt.patch_document_ids(tokens, patch_ids, lengths.shape[1])


_Layers = Callable[[jax.Array, jax.Array | None], jax.Array]


def _cut(config: TransformerConfig, blocks: Any, count: int) -> tuple[_Layers, _Layers]:
  """The first layers of a stack, and the others: [B, P, D], documents [B, P] -> [B, P, D]."""

  def layers(start: int, stop: int) -> _Layers:
    part = dataclasses.replace(config, num_layers=stop - start)
    params = {"params": jax.tree.map(lambda x: x[start:stop], blocks)}

    def run(x: jax.Array, documents: jax.Array | None) -> jax.Array:
      return transformer.Transformer(part).apply(params, x, documents) if stop > start else x

    return run

  return layers(0, count), layers(count, config.num_layers)


def _read_and_write(
  model: blt.BLT, params: Any, batch: steps.Batch, latents: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Patches [B, P, D] for the latent transformer; logits [B, S, V], given its last states."""
  tokens, lengths = batch["tokens"], batch["patch_lengths"]
  patch_ids = patching.patch_ids(lengths, tokens.shape[1])
  decoder_ids = patching.decoder_patch_ids(lengths, tokens.shape[1])

  def run(module: blt.BLT) -> tuple[jax.Array, jax.Array]:
    ngram_ids = batch.get("ngram_ids")
    states, patches = module.encode(tokens, patch_ids, lengths.shape[1], ngram_ids)
    logits = module.decode(tokens, states, latents, decoder_ids, patch_ids)
    return module.latent.project(patches), logits

  return model.apply({"params": params}, method=run)


def _counts(batch: steps.Batch) -> steps.Metrics:
  """How many patches, and how many pieces, are compared: float32 []."""
  return {
    "compared_patches": (batch["teacher_ids"] > 0).sum(dtype=jnp.float32),
    "compared_pieces": (batch["teacher_targets"] > 0).sum(dtype=jnp.float32),
  }


def weigh(batch: steps.Batch) -> steps.Batch:
  """Adds `shares` float32 [B, 2], targets for each patch and for each piece of a batch [B, S].

  A step divides a sum by the targets of all parts of a batch; so sums over patches and pieces
  become means, whatever part they are in.
  """
  counts = jnp.stack(list(_counts(batch).values()))
  shares = batch["loss_mask"].sum(dtype=jnp.float32) / jnp.maximum(counts, 1)
  return batch | {"shares": jnp.broadcast_to(shares, (len(batch["tokens"]), 2))}
