"""Progress of long jobs on the console."""

import time

from absl import logging


class Progress:
  """Logs bytes done, bytes per second and the time left, every few seconds."""

  def __init__(self, verb: str, total: int, every_seconds: float = 5.0):
    """Takes what is done to the bytes ("Scored") and how many there are."""
    self._verb, self._total, self._every = verb, total, every_seconds
    self._done = 0
    self._start = self._logged = time.monotonic()

  def add(self, num_bytes: int) -> None:
    """Counts bytes that are done."""
    self._done += num_bytes
    now = time.monotonic()
    if now - self._logged < self._every:
      return
    self._logged = now
    rate = self._done / (now - self._start)
    minutes, seconds = divmod(round((self._total - self._done) / rate), 60)
    logging.info(
      "%s %.1f of %.1f MB, %.2f MB/s, ETA %d:%02d",
      self._verb, self._done / 1e6, self._total / 1e6, rate / 1e6, minutes, seconds,
    )  # fmt: skip
