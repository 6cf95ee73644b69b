"""Which kernels run on the devices at hand: the one rule.

Kernels of a training step stand on the mesh in force, since nothing else says at tracing
time where a step will run. Without a mesh, and on CPUs, everything is plain XLA.
Generation knows no mesh and asks for the one device; scoring asks for each of its own.
Operators without a backward pass leave the choice to `jax.lax.platform_dependent`.
"""

from typing import Literal

import jax

Kernels = Literal["triton", "tpu", "xla"]

_AMPERE = 8.0  # compute capability of the oldest GPUs with products in bfloat16
_SMALLEST = 99 * 1024  # bytes of fast memory for a program, on consumer cards


# Of training steps and of reading texts on GPUs. Without products written in Triton, of which
# the compiler tries many, a training step compiles four times as fast and runs no slower.
GPU_OPTIONS = {"xla_gpu_enable_triton_gemm": False}


def kernels() -> Kernels:
  """The kernels for the mesh in force: "triton", "tpu", or "xla" for none.

  Not `platform_dependent`: the backward pass would keep what each of its branches needs.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  return "xla" if device is None else kernels_of(device)


def on_cpu() -> bool:
  """Whether CPUs run what is traced: those of the mesh in force, or else the default one."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return (jax.default_backend() if device is None else device.platform) == "cpu"


def kernels_of(device: jax.Device | jax.sharding.AbstractDevice) -> Kernels:
  """The kernels for a kind of device: NVIDIA GPUs from Ampere on, and TPUs, have some."""
  if device.platform == "tpu":
    return "tpu"
  is_nvidia = device.platform == "gpu" and device.device_kind.startswith("NVIDIA")
  return "triton" if is_nvidia and _compute_capability() >= _AMPERE else "xla"


def decodes_by_kernels() -> bool:
  """Whether generation has kernels here: on a single GPU, since they are not divided."""
  return jax.device_count() == 1 and kernels_of(jax.devices()[0]) == "triton"


def is_hopper(device: jax.Device) -> bool:
  """Whether a device can run the kernels in `ops/hopper`."""
  return device.platform == "gpu" and device.compute_capability == "9.0"


def compiler_options(device: jax.Device) -> dict[str, bool]:
  """How to compile a training step for a kind of device."""
  return GPU_OPTIONS if device.platform == "gpu" else {}


def shared_memory() -> int:
  """Bytes of fast memory that one program of a kernel may have on the GPUs at hand."""
  return getattr(jax.local_devices()[0], "shared_memory_per_block_optin", _SMALLEST)


def _compute_capability() -> float:
  """Of the GPUs at hand; without any, that of the oldest that will do."""
  return float(getattr(jax.local_devices()[0], "compute_capability", _AMPERE))
