"""A trace of a few steps for xprof."""

import os
from collections.abc import Callable
from typing import Any

import jax

from blt_jax.parallel import distributed
from blt_jax.storage.folders import Mirror


class Profiled:
  """A training step that names itself in traces, and traces some of its calls.

  Process 0 writes the trace; `xprof --logdir` or TensorBoard shows it.
  """

  def __init__(
    self, step: Callable[..., Any], folder: str | os.PathLike, start: int, steps: int
  ):
    """Takes the function and the window.

    Args:
      step: to call.
      folder: where the trace goes.
      start: first step in the trace; 0 for no trace.
      steps: in the trace.

    Raises:
      ValueError: a window of no step.
    """
    if start < 0 or steps < 1:
      raise ValueError(
        f"config.profile.start {start} must be a step, or 0 for no trace, and "
        f"config.profile.steps {steps} at least 1."
      )
    self._step, self._mirror = step, Mirror(folder)
    self._first, self._last = (start, start + steps - 1) if distributed.is_lead() else (0, -1)

  def __call__(self, step: int, *args: Any) -> Any:
    """Calls the function as step number `step`."""
    if step == self._first:
      jax.profiler.start_trace(str(self._mirror.path))
    with jax.profiler.StepTraceAnnotation("train", step_num=step):
      result = self._step(*args)
    if self._first and step == self._last:
      jax.block_until_ready(result)
      jax.profiler.stop_trace()
      self._mirror.push()
    return result
