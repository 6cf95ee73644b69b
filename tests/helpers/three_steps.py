"""Three updates of a run of tiny models, on devices of choice."""

from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from blt_jax.parallel import sharding
from blt_jax.runs.program import make_program


def losses_of_three_steps(
  config: ConfigDict, num_devices: int, patch_lengths: np.ndarray, start: Any = None
) -> tuple[np.ndarray, Any, Any]:
  """Losses [3] of three steps, and the states before and after, on the host.

  Args:
    config: of the run.
    num_devices: the first so many.
    patch_lengths: int32 [8, P], of each row.
    start: the state before; by default that of the run.
  """
  program = make_program(config, jax.devices()[:num_devices])
  rng = np.random.default_rng(0)
  tokens = rng.integers(4, 260, (8, config.data.seq_len + 1)).astype(np.int32)
  tokens[:, 1::5] = 36
  tokens[:, 11], tokens[:, [0, 12]] = 2, 1
  batch = {
    "tokens": tokens[:, :-1],
    "targets": tokens[:, 1:],
    "loss_mask": np.ones((8, config.data.seq_len), bool),
    "patch_lengths": patch_lengths,
  }
  start = jax.device_get(start or program.create_state())
  state = jax.device_put(start, jax.tree.map(lambda x: x.sharding, program.abstract_state))
  step, found = program.train_step(), []
  for _ in range(3):
    state, metrics = step(state, sharding.put_batch(batch, program.mesh))
    found.append(metrics["nats"] / metrics["targets"])
  return np.array(found), start, jax.device_get(state)
