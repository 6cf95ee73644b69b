"""Held-out bits per byte: one pass over documents."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from blt_jax.data.pipeline import Batch
from blt_jax.parallel import distributed, sharding
from blt_jax.runs import metrics
from blt_jax.training import steps


class Evaluator:
  """Scores a model's parameters on batches that it keeps."""

  def __init__(
    self,
    sums: Callable[..., steps.Metrics],
    batches: Iterable[Batch],
    mesh: Mesh,
    max_batches: int | None = None,
  ):
    """Takes the compiled sums and reads the batches.

    Args:
      sums: `Program.sums` of a run.
      batches: this process's rows of them.
      mesh: the devices.
      max_batches: look at so many only; None for all.

    Raises:
      ValueError: there are none.
    """
    own = list(itertools.islice(batches, max_batches))
    self._batches = own[: min(distributed.gather(len(own)))]  # as many on all processes
    if not self._batches:
      raise ValueError("There is no text to evaluate on: no document for each process.")
    self._mesh = mesh
    self._sums = sums

  def __call__(
    self, params: Any, scalars: dict[str, jax.Array] | None = None
  ) -> metrics.Numbers:
    """Returns `metrics.summarise` over all batches, and the number of `bytes`.

    Args:
      params: of the model.
      scalars: `TrainState.extra`.
    """
    parts: list[dict[str, jax.Array]] = []
    for batch in self._batches:
      parts.append(self._sums(params, sharding.put_batch(batch, self._mesh), scalars))
      jax.block_until_ready(parts[-2:][0])  # batches do not pile up on the device
    parts = jax.device_get(parts)
    totals = {k: np.sum([p[k] for p in parts], dtype=np.float64) for k in parts[0]}
    return metrics.summarise(totals) | {"bytes": float(totals["bytes"])}
