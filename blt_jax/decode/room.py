"""How many rows of caches fit into the memory of the devices, beside the weights."""

import logging
from typing import Any

import jax

from blt_jax.decode.language_model import LanguageModel


def rows_that_fit(
  model: LanguageModel, most: int, slots: int, keep_back: int = 1, copies: float = 1.0
) -> int:
  """As many rows as are wanted, or the largest power of two whose caches fit.

  Caches count as spread evenly over the devices of the weights.

  Args:
    model: its reader makes the caches; its weights say which devices.
    most: rows that are wanted.
    slots: ids that each has room for.
    keep_back: as of `loop.prefill`.
    copies: of the caches, which live at once.

  Returns:
    1 or more; `most` where devices do not tell their memory, as CPUs do not.
  """
  if most == 1 or (room := _room(model.weights)) is None:
    return most
  row = jax.eval_shape(lambda: model.reader.init(1, slots, keep_back))
  row_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(row))
  fitting = max(int(room / (copies * row_bytes)), 1)
  if fitting >= most:
    return most
  rows = 1 << (fitting.bit_length() - 1)
  logging.getLogger(__name__).warning(
    "%s texts of up to %s ids are read at a time, not %s: one takes %.2g of %.3g GB.",
    rows, f"{slots:,}", most, copies * row_bytes / 1e9, room / 1e9,
  )  # fmt: skip
  return rows


def _room(weights: Any) -> float | None:
  """Bytes that weights leave on their devices, all together; None if that is not known."""
  shards = [s for x in jax.tree.leaves(weights) for s in getattr(x, "addressable_shards", ())]
  devices = {s.device for s in shards}
  limits = [limit for limit in map(_limit, devices) if limit is not None]
  if not limits or len(limits) < len(devices):
    return None
  return sum(limits) - sum(s.data.nbytes for s in shards)


def _limit(device: jax.Device) -> int | None:
  """Bytes that JAX may have on a device, where it tells them."""
  return (device.memory_stats() or {}).get("bytes_limit")
