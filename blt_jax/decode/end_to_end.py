"""An end-to-end BLT that reads on from caches: one model measures, patches and predicts."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from blt_jax import tokenizer
from blt_jax.decode import blt_cache, blt_parts
from blt_jax.decode.blt import BLTReader, Known
from blt_jax.decode.blt_cache import BLTCache
from blt_jax.decode.byte_lm import ByteLMReader, EntropyModel
from blt_jax.decode.columns import running_max, running_sum
from blt_jax.decode.cursor import Cursor
from blt_jax.decode.from_params import blt_weights, byte_lm_weights, matrix
from blt_jax.decode.language_model import LanguageModel, with_ngrams
from blt_jax.decode.reader import Pending, WithoutPatches
from blt_jax.decode.weights import BLTWeights, ByteLMWeights, axes
from blt_jax.hashing import NgramTable
from blt_jax.models.config import ByteLMConfig
from blt_jax.models.end_to_end import EndToEndBLT, EndToEndConfig
from blt_jax.ops import losses
from blt_jax.ops.decode_layers import norm_linear, retain
from blt_jax.patching import PatchingConfig


def from_end_to_end(
  model: EndToEndBLT, params: Any, ngram_tables: Sequence[NgramTable] = ()
) -> LanguageModel:
  """An end-to-end BLT that reads on from caches; it has a slot for every patch.

  Args:
    model: the module, whose config has the threshold.
    params: its parameters, sharded or not; the weights follow them.
    ngram_tables: its frequency n-gram tables.

  Raises:
    ValueError: as `with_ngrams`.
  """
  c = model.config
  stack = ByteLMConfig(c.predictor, c.vocab_size, c.document_masks, dtype=c.dtype)
  reader = EndToEndReader(
    c, PatchingConfig(), c.dtype, EntropyModel(ByteLMReader(stack, c.dtype))
  )
  weights = jax.jit(lambda p: _weights(c, stack, p))(params)
  return LanguageModel(reader, with_ngrams(c, weights, ngram_tables))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PredictorWeights:
  """The tiny transformer before a local encoder."""

  stack: ByteLMWeights  # whose output has the rows of all bytes of the head
  bridge: jax.Array = axes("embed", "heads")  # [D, d], its states to the local encoder


@dataclasses.dataclass(frozen=True)
class EndToEndReader(BLTReader):
  """Reads bytes with an `EndToEndBLT`; its patching is that of its config, and not read."""

  config: EndToEndConfig
  source: EntropyModel

  @property
  def drafters(self) -> tuple[str, ...]:
    """See `Reader`."""
    return ()

  def read(
    self,
    weights: BLTWeights,
    cache: BLTCache,
    tokens: jax.Array,
    count: jax.Array,
    known: Known | None = None,
    num_latents: jax.Array | None = None,
  ) -> tuple[jax.Array, Pending]:
    """See `Reader`; what only drafting gives is of no effect."""
    del known, num_latents
    c = self.config
    entropies, inputs, source = self._measure(weights.source, cache.source, tokens, count)

    # Bytes to patches.
    cursor = cache.cursor
    late, after, trail = _advance(c, cursor, tokens, entropies > c.threshold)
    own = trail.patch[:, :-1] + late  # [B, C], the patch of each byte
    if c.is_late:
      at_bytes = dataclasses.replace(
        trail, patch=_after(own), position=_after(trail.position[:, :-1]),
        eos_patch=_after(trail.eos_patch[:, :-1]),
      )  # fmt: skip
      cache = blt_cache.write_bytes(c, cache, tokens, count, entropies, late, at_bytes)
    cache = blt_cache.write_bytes(c, cache, tokens, count, entropies, after, trail)

    # The encoder, the patches that have closed, the decoder.
    span = self._span(cursor, count, trail.document[:, :-1])
    x, cache = blt_parts.encode_bytes(c, weights, cache, tokens, span, inputs)
    closed = jnp.take_along_axis(trail.patch, count[:, None], axis=1)[:, 0]
    block = -(-tokens.shape[1] // 4)
    cache = blt_parts.add_closed_patches(c, weights, cache, closed, block)
    newest = trail.patch[:, 1:] - 1
    if c.is_late:
      newest = jnp.maximum(own - 1, trail.eos_patch[:, :-1] + 1)
    logits, cache = blt_parts.decode_bytes(c, weights, cache, x, newest, span)
    return logits, Pending(cache, trail, source)

  read_byte = WithoutPatches.read_byte  # no row waits

  def _measure(
    self, weights: PredictorWeights, cache: Any, tokens: jax.Array, count: jax.Array
  ) -> tuple[jax.Array, jax.Array, Pending]:
    """Entropies [B, C] at the bytes, and what of them goes into the encoder, [B, C, D]."""
    c, stack = self.config, weights.stack
    x, pending = self.source.reader.read_states(stack, cache, tokens, count)
    normed = stack.norm, c.predictor.norm_epsilon
    logits = norm_linear(x, *normed, stack.output)
    heads = logits.astype(jnp.float32).reshape(*tokens.shape, c.num_heads, c.vocab_size)
    entropies = retain(losses.entropy_nats(heads[:, :, -2 if c.is_late else 0]))
    return entropies, norm_linear(x, *normed, weights.bridge), pending


def _advance(
  config: EndToEndConfig, cursor: Cursor, tokens: jax.Array, fires: jax.Array
) -> tuple[jax.Array, jax.Array, Cursor]:
  """Patches the next bytes; see `models.own_patches.find`.

  Args:
    config: the model.
    cursor: [B].
    tokens: int [B, C].
    fires: bool [B, C].

  Returns:
    bool [B, C], whether each byte starts a patch that was not known of before; bool [B, C],
    whether the byte after each is known to start one; and the trail, fields [B, C + 1].
  """

  def follow(first, rest):
    return jnp.concatenate([first[:, None], rest], axis=1)

  position = cursor.position[:, None] + jnp.arange(tokens.shape[1] + 1)[None]
  is_end = tokens == tokenizer.EOS_ID
  ends = jnp.where(is_end, position[:, 1:], 0)
  document = running_max(follow(cursor.document, ends))
  age = position[:, :-1] - document[:, :-1]  # 0 for the first byte of a document

  late = fires & (age > 1) & config.is_late
  after = is_end | (age == 0) | (fires & (not config.is_late))
  new = late.astype(jnp.int32) + after
  patch = running_sum(follow(cursor.patch, new))
  with_end = jnp.where(is_end, patch[:, :-1] + late, -1)
  trail = jax.tree.map(lambda x: jnp.repeat(x[:, None], position.shape[1], axis=1), cursor)
  return (
    late,
    after,
    dataclasses.replace(
      trail,
      position=position,
      patch=patch,
      document=document,
      eos_patch=running_max(follow(cursor.eos_patch, with_end)),
    ),
  )


def _after(values: jax.Array) -> jax.Array:
  """[B, C + 1] with values [B, C] in the places after the first."""
  return jnp.pad(values, ((0, 0), (1, 0)))


def _weights(config: EndToEndConfig, stack: ByteLMConfig, params: Any) -> BLTWeights:
  """Weights of an end-to-end BLT; matrices in the dtype of its config, norms in float32."""
  c = config
  if not c.skip:  # bytes have no embeddings of their own
    zeros = jnp.zeros((c.vocab_size, c.encoder.dim))
    params = params | {"embedder": {"bytes": {"embedding": zeros}}}
  predictor = PredictorWeights(
    stack=byte_lm_weights(stack, params["predictor"], c.dtype),
    bridge=matrix(params["bridge"], c.dtype),
  )
  return dataclasses.replace(blt_weights(c, params, c.dtype), source=predictor)
