"""Where the time of a run goes, restarts included."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any


class Stopwatch:
  """Divides time into steps that count and the rest.

  Goodput is the share of the time since the run first began that its steps took, without
  compiling, waiting for data, evaluating, saving, being down, and steps that were done again
  because a process ended after its last checkpoint.
  """

  def __init__(self, began: float | None = None, useful_seconds: float = 0.0):
    """Begins now, or goes on with a `state` of before."""
    self._began = time.time() if began is None else began
    self._useful = useful_seconds
    self._since = time.monotonic()
    self._waited = 0.0
    self._paused: dict[str, float] = {}

  @property
  def state(self) -> dict[str, float]:
    """What the next process goes on with if it continues from here."""
    return {"began": self._began, "useful_seconds": self._useful}

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """For the data."""
    since = time.monotonic()
    yield
    self._waited += time.monotonic() - since

  @contextlib.contextmanager
  def paused(self, reason: str) -> Iterator[None]:
    """For something that is no step; what is measured begins anew after it."""
    since = time.monotonic()
    yield
    self._paused[reason] = self._paused.get(reason, 0.0) + time.monotonic() - since
    self.restart()

  def restart(self) -> None:
    """Leaves the time since the last lap out."""
    self._since, self._waited = time.monotonic(), 0.0

  def lap(self, num_steps: int) -> dict[str, Any]:
    """Numbers of the steps since the last lap.

    Returns:
      `seconds` they took; `step_seconds` of one; `data_wait`, the share of waiting; for each
      reason of a pause before them its seconds, as in `checkpoint_seconds`; `goodput`.
    """
    now = time.monotonic()
    seconds, waited = max(now - self._since, 1e-9), self._waited
    self._since, self._waited = now, 0.0
    self._useful += seconds - waited
    paused, self._paused = self._paused, {}
    return {
      "seconds": seconds,
      "step_seconds": seconds / num_steps,
      "data_wait": waited / seconds,
      "goodput": self._useful / max(time.time() - self._began, 1e-9),
      **{f"{reason}_seconds": spent for reason, spent in paused.items()},
    }
