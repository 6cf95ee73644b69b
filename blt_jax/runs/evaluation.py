"""Held-out bits per byte: one pass over documents."""

import itertools
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from blt_jax.data.pipeline import Batch
from blt_jax.parallel import distributed, sharding
from blt_jax.runs import metrics
from blt_jax.training import steps


class Evaluator:
  """Scores a model's parameters on batches that it keeps, compiled once."""

  def __init__(
    self,
    model: nn.Module,
    batches: Iterable[Batch],
    mesh: Mesh,
    max_batches: int | None = None,
  ):
    own = list(itertools.islice(batches, max_batches))
    self._batches = own[: min(distributed.gather(len(own)))]  # as many on all processes
    self._mesh = mesh
    self._sums = sharding.jit(lambda params, batch: steps.sums(model, params, batch), mesh)

  def __call__(self, params: Any) -> metrics.Numbers:
    """Returns `metrics.summarise` over all batches, and the number of `bytes`."""
    parts = [self._sums(params, sharding.put_batch(b, self._mesh)) for b in self._batches]
    parts = jax.device_get(parts)
    totals = {k: np.sum([p[k] for p in parts], dtype=np.float64) for k in parts[0]}
    return metrics.summarise(totals) | {"bytes": float(totals["bytes"])}
