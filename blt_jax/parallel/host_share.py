"""Which part of each batch a process makes."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from blt_jax.parallel import sharding


@dataclasses.dataclass(frozen=True)
class HostShare:
  """The rows of a batch that the devices of this process hold.

  Processes that share heads and hidden units of the same rows have the same share.

  Attributes:
    index: of the share.
    count: of different shares.
    rows: int [B / count] row numbers, rising.
  """

  index: int
  count: int
  rows: np.ndarray

  def streams(self, num_streams: int) -> range:
    """Which of the streams of rows fill this share."""
    each = num_streams // self.count
    return range(self.index * each, (self.index + 1) * each)


def host_share(batch_size: int, mesh: Mesh) -> HostShare:
  """The share of this process.

  Raises:
    ValueError: two processes hold rows in common, but not the same.
  """
  shares: dict[int, set[int]] = {}
  indices: Any = NamedSharding(mesh, sharding.BATCH).devices_indices_map((batch_size,))
  for device, (rows,) in indices.items():
    shares.setdefault(device.process_index, set()).update(range(batch_size)[rows])
  different = sorted({tuple(sorted(rows)) for rows in shares.values()})
  if sum(map(len, different)) != batch_size:
    raise ValueError(
      f"The {jax.process_count()} processes cannot share the rows of a batch on the mesh "
      f"{dict(mesh.shape)}: some would hold a part of each other's rows. Make "
      "config.mesh.tensor a divisor or a multiple of the devices of a process."
    )
  own = tuple(sorted(shares[jax.process_index()]))
  return HostShare(different.index(own), len(different), np.array(own))
