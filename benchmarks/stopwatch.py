"""How the benchmarks of training take times."""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax

_BEGIN = time.perf_counter()
_GROUP_SECONDS = 0.2  # calls that take less are timed several at once


def seconds(call: Callable[[], Any], repeats: int = 5) -> float:
  """Median seconds of a call that jax runs in the background, after one to warm up."""
  jax.block_until_ready(call())
  once = _time(call, 1)
  calls = min(max(int(_GROUP_SECONDS / once), 1), 20)
  return statistics.median(_time(call, calls) for _ in range(repeats))


def in_turn(calls: dict[str, Callable[[], Any]], repeats: int = 5) -> dict[str, float]:
  """Median seconds of several calls, one after the other in each round.

  Whatever slows the machine down for a while slows all of them.
  """
  for call in calls.values():
    jax.block_until_ready(call())
  times: dict[str, list[float]] = {name: [] for name in calls}
  for _ in range(repeats):
    for name, call in calls.items():
      times[name].append(_time(call, 1))
  return {name: statistics.median(values) for name, values in times.items()}


def _time(call: Callable[[], Any], number: int) -> float:
  """Seconds of a call, where `number` are started before the first is waited for."""
  begin = time.perf_counter()
  for _ in range(number):
    result = call()
  jax.block_until_ready(result)
  return (time.perf_counter() - begin) / number


def say(done: str) -> None:
  """Tells whoever waits what is done, and the seconds since the benchmark began."""
  print(f"{time.perf_counter() - _BEGIN:6.0f} s  {done}", file=sys.stderr, flush=True)
