"""A BLT that reads on from caches and takes the states of its entropy model in."""

import dataclasses

import jax

from blt_jax.decode.blt import BLTReader, Known
from blt_jax.decode.blt_cache import BLTCache
from blt_jax.decode.byte_lm import EntropyModel
from blt_jax.decode.reader import EntropySource, Pending, WithoutPatches
from blt_jax.decode.weights import BLTWeights
from blt_jax.models.config import BLTConfig
from blt_jax.ops import losses, norm
from blt_jax.ops.decode_layers import linear, retain
from blt_jax.patching import PatchingConfig


def check(config: BLTConfig, source: EntropySource | None, rule: PatchingConfig) -> None:
  """Raises ValueError where a source has no states for a model that takes some."""
  width = None
  if isinstance(source, EntropyModel) and rule.scheme == "entropy":
    width = source.reader.config.transformer.dim
  if width != config.entropy_state_dim:
    raise ValueError(
      f"The model takes the states of its entropy model, of width {config.entropy_state_dim}, "
      f"and this one's is {width}: patch by the entropies of the model that it was trained "
      "with."
    )


@dataclasses.dataclass(frozen=True)
class EntropyStatesReader(BLTReader):
  """Reads bytes with a `BLT` that has an `entropy_state_dim`.

  The entropy model reads each byte before the BLT does, again where it has drafted it.
  """

  source: EntropyModel

  def read(
    self,
    weights: BLTWeights,
    cache: BLTCache,
    tokens: jax.Array,
    count: jax.Array,
    known: Known | None = None,
    num_latents: jax.Array | None = None,
  ) -> tuple[jax.Array, Pending]:
    """See `BLTReader`; what is known of entropies alone is of no use."""
    del known
    known = self._measure(weights, cache, tokens, count)
    return self._read(weights, cache, tokens, count, known, num_latents)[:2]

  read_byte = WithoutPatches.read_byte  # no row waits, since states of the byte would have to

  def _measure(
    self, weights: BLTWeights, cache: BLTCache, tokens: jax.Array, count: jax.Array
  ) -> Known:
    """Entropies at the bytes, and what the BLT takes of the states there."""
    source = weights.source
    epsilon = self.source.reader.config.transformer.norm_epsilon
    x, pending = self.source.reader.read_states(source, cache.source, tokens, count)
    states = retain(norm.rms_norm(x, source.norm, epsilon))  # [B, C, d]
    logits = retain(linear(states, source.output))
    entropies = losses.entropy_nats(logits.astype("float32"))
    states = states.astype(self.dtype)
    matrices = weights.states_to_encoder, weights.states_to_decoder
    added = [retain(linear(states, m)) for m in matrices if m is not None]
    return Known(entropies, pending, *added)
