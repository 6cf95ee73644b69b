"""What kernels for NVIDIA Hopper GPUs share: layouts, shared memory, rings of slots."""

from typing import Any, NamedTuple

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from blt_jax.ops import device

LAYOUT = plgpu.Layout.WGMMA  # how a warpgroup holds products
PER_ROW = LAYOUT.reduce(1)  # and one number for each of their rows
COMPILER_PARAMS = plgpu.CompilerParams(
  approx_math=True,
  # Safe, since no thread writes what it reads; a barrier at each access costs up to 2 %.
  unsafe_no_auto_barriers=True,
  reduction_scratch_bytes=512,  # none are across warps
  lowering_semantics=plgpu.LoweringSemantics.Lane,
)
_NUM_CORES = 132  # of an H100 or H200, where there is no device to ask


class Ring(NamedTuple):
  """Slots of shared memory that one warpgroup fills and others read, over and over.

  Attributes:
    full: barriers, of copies to the slots.
    empty: barriers, of those who have read them.
    num_slots: how many.
  """

  full: Any
  empty: Any
  num_slots: int

  def slot(self, step):
    """The one of a step."""
    return lax.rem(step, self.num_slots)

  def wait_until_free(self, step):
    """Waits until all have read what the slot held before."""

    @pl.when(step >= self.num_slots)
    def _():
      self.wait_until_read(step - self.num_slots)

  def wait_until_read(self, step):
    """Waits until all have read what the slot holds."""
    plgpu.barrier_wait(self.empty.at[self.slot(step)])

  def wait_until_full(self, step):
    """Waits for the copies to the slot."""
    plgpu.barrier_wait(self.full.at[self.slot(step)])

  def release(self, step):
    """Says that this warpgroup has read the slot."""
    plgpu.barrier_arrive(self.empty.at[self.slot(step)])

  def copy(self, there, slots, step, **kwargs):
    """Starts to copy to the slot of a step, of so many `slots`."""
    here = self.slot(step)
    plgpu.copy_gmem_to_smem(there, slots.at[here], self.full.at[here], **kwargs)


def num_cores() -> int:
  """How many programs run at once."""
  first = jax.devices()[0]
  return first.core_count if device.is_hopper(first) else _NUM_CORES


def share(total, axis_name, num_programs):
  """How many of all items this program takes, and a function that gives their numbers."""
  me = lax.axis_index(axis_name)
  return lax.div(total + num_programs - 1 - me, num_programs), lambda i: me + i * num_programs


def tiled(shape, dtype):
  """Shared memory [..., rows, columns] for copies and products."""
  columns = min(shape[-1], 64)
  transforms = plgpu.TilingTransform((8, columns)), plgpu.SwizzleTransform(2 * columns)
  return plgpu.SMEM(shape, dtype, transforms=transforms)


def load(ref, layout):
  """Reads an array into registers."""
  index = ((),) if jax.__version_info__ < (0, 11) else ()
  return plgpu.load(ref, *index, layout=layout)
