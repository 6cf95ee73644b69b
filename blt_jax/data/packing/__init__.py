"""Documents into rows of S byte slots and P patch slots."""

from blt_jax.data.packing.rows import PackRows as PackRows
from blt_jax.data.packing.rows import slot_use as slot_use
