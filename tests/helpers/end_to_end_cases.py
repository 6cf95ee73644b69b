"""End-to-end BLTs of either head, one with frequent n-grams, and their forward passes."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from forward import TINY, stack
from uncached import random_params

from blt_jax import tokenizer
from blt_jax.hashing import NgramTable
from blt_jax.models import transformer
from blt_jax.models.end_to_end import EndToEndBLT, EndToEndConfig
from blt_jax.models.extras import Extras

SEQ_LEN = 24  # bytes of a row, and rows, so that one compiled program serves all
_BLT = {field.name: getattr(TINY, field.name) for field in dataclasses.fields(TINY)}
_BLT |= {  # unrolled layers compile faster
  name: dataclasses.replace(_BLT[name], unroll=True)
  for name in ("encoder", "latent", "decoder")
}
_NEXT = EndToEndConfig(**_BLT, predictor=stack(16, 1, window=6, unroll=True), threshold=4.48)
CONFIGS = {
  "next": _NEXT,
  "backward": dataclasses.replace(
    _NEXT, head="backward", backward_bytes=3, skip=False, hash_sizes=()
  ),
}


# Some pairs of ids, so that a row has n-grams that are known and others that are not.
_PAIRS = np.stack(np.divmod(np.arange(0, 260**2, 3), 260), axis=1)
TABLE = NgramTable(np.random.default_rng(0).permutation(_PAIRS)[:16_000])
WITH_NGRAMS = dataclasses.replace(_NEXT, hash_sizes=(), ngram_vocab_sizes=(TABLE.size,))


class Found(NamedTuple):
  """What `run` gives."""

  logits: jax.Array  # float32 [S, S, V]
  extras: Extras
  heads: jax.Array  # float32 [S, S, n, V], of the head
  gradients: Any  # of a mixture of the logits of row 0 at the position, by parameter


@functools.cache
def params(head: str) -> Any:
  """Random parameters, sharpened so that half of the entropies are above the threshold."""
  found = random_params(CONFIGS[head])
  found["predictor"]["output"]["kernel"] *= 1.5
  return found


def run(head: str, ids: Any, own: Any = None, position: int = 0, threshold=None) -> Found:
  """The forward pass of ids [S, S], by default with `params`, at the threshold of `CONFIGS`."""
  own = params(head) if own is None else own
  if threshold is None:
    threshold = CONFIGS[head].threshold
  return _compiled(head)(own, ids, position, threshold)


@functools.cache
def ngram_params() -> Any:
  """Random parameters of `WITH_NGRAMS`, sharpened as those of `params`."""
  found = random_params(WITH_NGRAMS)
  found["predictor"]["output"]["kernel"] *= 1.5
  return found


def run_with_ngrams(ids: Any) -> tuple[jax.Array, Extras]:
  """Logits [S, S, V] and more of ids [S, S], by `WITH_NGRAMS`."""
  return _apply_with_ngrams({"params": ngram_params()}, jnp.asarray(ids))


@jax.jit
def _apply_with_ngrams(variables, ids):
  documents = transformer.document_ids(ids, tokenizer.EOS_ID)
  ngram_ids = TABLE.ids(ids, documents)[None]
  return EndToEndBLT(WITH_NGRAMS).apply(variables, ids, ngram_ids=ngram_ids, method="forward")


@functools.cache
def _compiled(head):
  model = EndToEndBLT(CONFIGS[head])

  def forward(model, tokens, threshold):
    logits, extras = model.forward(tokens, None, threshold=threshold)
    return logits, extras, model.predictor(tokens)[1]

  def mixture(params, ids, position, threshold):
    found = model.apply({"params": params}, ids, threshold, method=forward)
    return (found[0][0, position] * jnp.cos(jnp.arange(260))).sum(), found

  @jax.jit
  def compiled(*arguments):
    (_, found), gradients = jax.value_and_grad(mixture, has_aux=True)(*arguments)
    return Found(*found, gradients)

  return compiled
