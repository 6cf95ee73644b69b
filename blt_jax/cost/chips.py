"""What the accelerators can do, by the names that jax gives them.

Sources: docs.cloud.google.com/tpu/docs (v4, v5e, v5p, v6e, tpu7x); links of v4: Jouppi et
al. 2023, "TPU v4", table 4; GPUs: NVIDIA's datasheets (SXM, without sparsity). The network
of a v4 host is not published: it is taken to be that of v5p.
"""

import dataclasses

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One jax device: a chip, but one of the two halves of a TPU7x.

  Attributes:
    device_kind: how the names of its devices begin.
    flops: peak of bfloat16 products, per second.
    hbm_bytes: memory.
    hbm_bandwidth: bytes per second.
    link_bandwidth: bytes per second, one way, of a link to a neighbour.
    links: links to neighbours: 6 in a torus of three dimensions, 4 in one of two.
    network_bandwidth: bytes per second, one way, between slices.
    clock: cycles per second; 0 where it is not published.
  """

  device_kind: str
  flops: float
  hbm_bytes: float
  hbm_bandwidth: float
  link_bandwidth: float = 0.0
  links: int = 0
  network_bandwidth: float = 0.0
  clock: float = 0.0


CHIPS = (
  Chip("TPU v4", 275e12, 32 * _GIB, 1.2e12, 50e9, 6, 6.25e9, 1.05e9),
  Chip("TPU v5 lite", 197e12, 16 * _GIB, 0.819e12, 50e9, 4, 3.125e9),  # v5e
  Chip("TPU v5", 459e12, 95 * _GIB, 2.765e12, 100e9, 6, 6.25e9),  # v5p
  Chip("TPU v6 lite", 918e12, 32 * _GIB, 1.638e12, 100e9, 4, 12.5e9),  # v6e
  Chip("TPU7x", 2307e12 / 2, 96 * _GIB, 7.38e12 / 2, 50e9, 6, 6.25e9),
  Chip("NVIDIA H100 PCIe", 756e12, 80e9, 2.0e12),
  Chip("NVIDIA H100 NVL", 835e12, 94e9, 3.9e12),
  Chip("NVIDIA H100", 989e12, 80e9, 3.35e12),
  Chip("NVIDIA H200 NVL", 835e12, 141e9, 4.8e12),
  Chip("NVIDIA H200", 989e12, 141e9, 4.8e12),
  Chip("NVIDIA A100-SXM4-80GB", 312e12, 80e9, 2.039e12),
  Chip("NVIDIA A100", 312e12, 40e9, 1.555e12),
)


def find_chip(device_kind: str) -> Chip | None:
  """The chip of a `jax.Device.device_kind`; None for one that is not in `CHIPS`."""
  matches = (c for c in CHIPS if device_kind.startswith(c.device_kind))
  return max(matches, key=lambda c: len(c.device_kind), default=None)
