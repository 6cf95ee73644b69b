"""What kernels for NVIDIA Hopper GPUs share."""

import jax
from jax.experimental.pallas import mosaic_gpu as plgpu

LAYOUT = plgpu.Layout.WGMMA  # how a warpgroup holds products
PER_ROW = LAYOUT.reduce(1)  # and one number for each of their rows
COMPILER_PARAMS = plgpu.CompilerParams(
  approx_math=True,
  reduction_scratch_bytes=512,  # none are across warps
  lowering_semantics=plgpu.LoweringSemantics.Lane
)
_NUM_CORES = 132


def is_hopper(device: jax.Device) -> bool:
  """Whether a device can run the kernels."""
  return device.platform == "gpu" and device.compute_capability == "9.0"


def num_cores() -> int:
  """How many programs run at once."""
  device = jax.devices()[0]
  return device.core_count if is_hopper(device) else _NUM_CORES


def tiled(shape, dtype):
  """Shared memory [..., rows, columns] for copies and products."""
  columns = min(shape[-1], 64)
  transforms = plgpu.TilingTransform((8, columns)), plgpu.SwizzleTransform(2 * columns)
  return plgpu.SMEM(shape, dtype, transforms=transforms)


def load(ref, layout, optimized=True):
  """Reads an array into registers."""
  index = ((),) if jax.__version_info__ < (0, 11) else ()
  return plgpu.load(ref, *index, layout=layout, optimized=optimized)
