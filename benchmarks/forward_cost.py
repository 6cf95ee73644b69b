"""How the cost of a forward pass grows with the row, at the quickstart's size.

  python benchmarks/forward_cost.py [--json FILE] [--lengths 2048,...]

The local models see a window, so their time and memory per byte stay the same; the
attention of the latent transformer sees all patches, so its share grows.
"""

import argparse
import json
import pathlib
import runpy
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from blt_jax import config as settings
from blt_jax import patching
from blt_jax.models import init
from blt_jax.models.blt import BLT

_PATCH_SIZE = 4


def main() -> None:
  """Measures and prints a table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--json", help="also write the numbers to this file")
  parser.add_argument("--lengths", default="2048,4096,8192,16384,32768")
  arguments = parser.parse_args()
  lengths = [int(n) for n in arguments.lengths.split(",")]
  root = pathlib.Path(__file__).parents[1]
  quickstart = runpy.run_path(str(root / "configs" / "quickstart.py"))["get_config"]()
  model = BLT(settings.make_model_config(quickstart.model))
  params = jax.jit(lambda: init.fresh_params(model, seed=0))()
  rows = [measure(model, params, n) for n in lengths]
  print(f"{jax.devices()[0].device_kind}, one row, {_PATCH_SIZE} bytes per patch")
  print(" bytes  local ms  ns/byte  temp MB  B/byte   latent ms  ns/byte")
  for r in rows:
    print(
      f"{r['bytes']:6d}  {r['local_ms']:8.1f}  {r['local_ms'] * 1e6 / r['bytes']:7.0f}"
      f"  {r['local_temp_mb']:7.1f}  {r['local_temp_mb'] * 1e6 / r['bytes']:6.0f}"
      f"  {r['latent_ms']:10.1f}  {r['latent_ms'] * 1e6 / r['bytes']:7.0f}"
    )
  if arguments.json:
    pathlib.Path(arguments.json).write_text(json.dumps(rows, indent=2))


def measure(model: BLT, params, length: int) -> dict[str, float]:
  """Times the local models and the latent transformer on a row of `length` bytes."""
  tokens = jnp.asarray(np.random.default_rng(0).integers(4, 260, (1, length)), jnp.int32)
  config = patching.PatchingConfig(scheme="static", patch_size=_PATCH_SIZE)
  lengths = patching.patch_lengths(tokens, config)
  ids = patching.patch_ids(lengths, length)
  decoder_ids = patching.decoder_patch_ids(lengths, length)
  num_patches = lengths.shape[1]
  latents = jnp.ones((1, num_patches, model.config.latent.dim))

  def local(params):
    variables = {"params": params}
    states, patches = model.apply(variables, tokens, ids, num_patches, method=BLT.encode)
    read = tokens, states, latents, decoder_ids, ids
    logits = model.apply(variables, *read, method=BLT.decode)
    return logits, patches

  def latent(params, patches):
    return model.apply({"params": params}, tokens, patches, ids, method=BLT.think)

  compiled_local = jax.jit(local).lower(params).compile()
  _, patches = compiled_local(params)
  compiled_latent = jax.jit(latent).lower(params, patches).compile()
  return {
    "bytes": length,
    "local_ms": _milliseconds(compiled_local, params),
    "local_temp_mb": compiled_local.memory_analysis().temp_size_in_bytes / 1e6,
    "latent_ms": _milliseconds(compiled_latent, params, patches),
  }


def _milliseconds(function, *arguments) -> float:
  """Median of five calls after one."""
  jax.block_until_ready(function(*arguments))
  times = []
  for _ in range(5):
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    times.append(1e3 * (time.perf_counter() - start))
  return statistics.median(times)


if __name__ == "__main__":
  main()
