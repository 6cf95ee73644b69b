"""Generation with the kernels of a GPU, interpreted where there is none, is exact."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from forward import TINY, stack
from jax.experimental import pallas as pl
from uncached import Uncached, random_params

from blt_jax.decode.generator import Generator
from blt_jax.decode.sampling import Sampling
from blt_jax.models.config import ByteLMConfig
from blt_jax.ops import device
from blt_jax.patching import PatchingConfig

_LOCAL = stack(256, 1, window=64, mlp_multiple_of=256)  # sizes that the kernels take
_ENTROPY = ByteLMConfig(_LOCAL)
_MODEL = dataclasses.replace(
  TINY, encoder=_LOCAL, latent=stack(512, 2, mlp_multiple_of=256), decoder=_LOCAL
)


@pytest.fixture(autouse=True)
def _kernels(monkeypatch):
  if jax.default_backend() != "gpu":
    run = functools.partial(pl.pallas_call, interpret=True)
    monkeypatch.setattr(
      pl, "pallas_call", lambda *args, compiler_params, interpret, **rest: run(*args, **rest)
    )
    monkeypatch.setattr(device, "decodes_by_kernels", lambda: True)
    monkeypatch.setattr("jax.experimental.pallas.triton.debug_barrier", lambda: None)


@pytest.mark.parametrize("rows", [1, 12])
def test_rows_are_what_the_full_forward_says(rows):
  """Rows that start, wait and end at places of their own; few vectors, and many."""
  entropy_params = random_params(_ENTROPY)
  entropy_params["output"]["kernel"] *= 3
  uncached = Uncached(
    _MODEL, random_params(_MODEL), PatchingConfig(threshold=3.0), _ENTROPY, entropy_params
  )
  rng = np.random.default_rng(rows)
  prompts = [rng.bytes(n) for n in rng.integers(0, 36, rows + 2)]
  results = Generator(uncached.cached(), batch_size=rows, prefill_chunk=16).generate(
    prompts, Sampling(max_bytes=12)
  )
  cpu = jax.local_devices(backend="cpu")[0]
  moved = {
    name: jax.device_put(getattr(uncached, name), cpu) for name in ("params", "entropy_params")
  }
  with jax.default_device(cpu):
    for result in results:
      dataclasses.replace(uncached, **moved).check(result, is_greedy=False)
