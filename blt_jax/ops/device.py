"""Which kernels train on the devices at hand: the one rule.

Kernels of a training step stand on the mesh in force, since nothing else says at tracing
time where a step will run. Without a mesh, and on CPUs, everything is plain XLA.
"""

from typing import Literal

import jax

Kernels = Literal["triton", "tpu", "xla"]

_AMPERE = 8.0  # compute capability of the oldest GPUs with products in bfloat16


def kernels() -> Kernels:
  """The kernels for the mesh in force: "triton", "tpu", or "xla" for none.

  Not `platform_dependent`: the backward pass would keep what each of its branches needs.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  platform = None if device is None else device.platform
  if platform == "tpu":
    return "tpu"
  return "triton" if platform == "gpu" and runs_triton(jax.local_devices()[0]) else "xla"


def runs_triton(device: jax.Device) -> bool:
  """Whether a device is an NVIDIA GPU of the generation Ampere or a later one."""
  if device.platform != "gpu" or not device.device_kind.startswith("NVIDIA"):
    return False
  return float(device.compute_capability) >= _AMPERE


def shared_memory() -> int:
  """Bytes of fast memory that a kernel's program may have on the GPU at hand."""
  return getattr(jax.local_devices()[0], "shared_memory_per_block_optin", _SMALLEST)


_SMALLEST = 99 * 1024  # of a program on consumer cards
