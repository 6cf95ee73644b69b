"""Stops a run whose loss explodes, and keeps the batch that did it."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from blt_jax.storage.folders import Folder


class LossGuard:
  """Looks at each step's loss before anything is saved after it.

  Attributes:
    usual: mean loss of the steps so far, nats per target; the last fifty or so weigh most.
  """

  def __init__(self, workdir: str | os.PathLike, max_jump: float):
    """Takes where to write a bad batch, and by how much the loss may rise.

    Args:
      workdir: the run's folder.
      max_jump: nats per target above the mean of the steps before, the last fifty or so.
    """
    self._folder, self._max_jump = Folder(workdir), max_jump
    self.usual: float | None = None

  def check(self, step: int, sums: Mapping[str, Any], batch: Mapping[str, jax.Array]) -> None:
    """Looks at one step.

    Args:
      step: its number.
      sums: its metrics, on the host.
      batch: what it learned from; each process writes its rows of a bad one.

    Raises:
      FloatingPointError: the loss or the gradient is NaN or infinite, or the loss jumped.
    """
    loss = float(sums["nats"]) / max(float(sums["targets"]), 1)
    finite = np.isfinite(loss) and np.isfinite(sums["grad_norm"])
    usual = loss if self.usual is None else self.usual
    if finite and loss <= usual + self._max_jump:
      if sums["targets"]:  # a batch of prompts alone says nothing
        self.usual = usual + 0.02 * (loss - usual)
      return
    name = f"bad_batch_{step}_process_{jax.process_index()}.npz"
    rows: dict[str, Any] = {name: local_rows(array) for name, array in batch.items()}
    with self._folder.new_file(name) as path:
      np.savez(path, **rows)
    what = "jumped" if finite else "or its gradient became NaN or infinite: it went"
    raise FloatingPointError(
      f"The loss {what} from about {usual:.3f} to {loss:.3f} at step {step}. The batch is in "
      f"{self._folder.path_of(name)}, and no checkpoint was saved since. Lower "
      "config.optimizer.learning_rate, or raise config.logging.max_loss_jump if jumps are "
      "harmless, and start again: the run continues from its newest checkpoint."
    )


def local_rows(array: jax.Array) -> np.ndarray:
  """The rows of a batch that this process holds, each once, in their order."""
  shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
  return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])
