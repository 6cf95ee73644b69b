"""How fast the 100M entropy model scores text, on all devices of this machine.

  python benchmarks/score_entropies.py
  python benchmarks/score_entropies.py --lanes=11,22 --megabytes=40 --json=rates.json

Parameters are random, in bfloat16. The limit is the model's arithmetic at the rate of a large
matrix product on the same devices.
"""

import argparse
import json
import pathlib
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from blt_jax import config, kinds, tokenizer
from blt_jax.data.reading import sources
from blt_jax.entropy.neural import BatchScorer
from blt_jax.models import init
from blt_jax.models.byte_lm import ByteLM

_SIZE = 8192  # of the matrices of the product


def main() -> None:
  """Measures and prints a table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--data", default="stdlib", help="text, as in config.data.path")
  parser.add_argument("--megabytes", type=float, default=20, help="of it to score (20)")
  parser.add_argument("--lanes", default="11", help="rows side by side, several numbers (11)")
  parser.add_argument(
    "--chunks", default="6144", help="bytes of a row at once, likewise (6144)"
  )
  parser.add_argument("--json", help="also write the numbers to this file")
  args = parser.parse_args()
  texts = sources.read_documents(args.data, max_bytes=int(args.megabytes * 1e6))
  documents = [tokenizer.encode(text) for text in texts]
  model = config.make_model_config(config.get_config("byte_lm").model)
  params = nn.meta.unbox(init.init_params(ByteLM(model), jax.random.key(0)))
  per_byte = kinds.model_flops(model, 4096, 1) / 3 / 4096  # forward alone
  limit = product_rate() * jax.local_device_count() / per_byte / 1e6
  print(f"limit {limit:.2f} MB/s ({per_byte / 1e6:.0f} MFLOP per byte)")
  rows = []
  print(f"{'lanes':>6} {'chunk':>6} {'MB/s':>8}")
  for lanes in map(int, args.lanes.split(",")):
    for chunk in map(int, args.chunks.split(",")):
      rate = measure(BatchScorer(model, params, False, lanes, chunk), documents)
      rows.append({"lanes": lanes, "chunk": chunk, "megabytes_per_second": rate})
      print(f"{lanes:6} {chunk:6} {rate:8.3f}")
  if args.json:
    pathlib.Path(args.json).write_text(json.dumps({"limit": limit, "rows": rows}, indent=2))


def measure(scorer: BatchScorer, documents: list[np.ndarray]) -> float:
  """MB/s of documents, after a first one for the compiler."""
  scorer(documents[:1])
  start = time.perf_counter()
  scorer(documents)
  return sum(map(len, documents)) / (time.perf_counter() - start) / 1e6


def product_rate() -> float:
  """Floating-point operations per second of a product of matrices in bfloat16."""
  a = jnp.ones((_SIZE, _SIZE), jnp.bfloat16)
  product = jax.jit(lambda a: a @ a)
  product(a).block_until_ready()
  start = time.perf_counter()
  for _ in range(10):
    result = product(a)
  result.block_until_ready()
  return 10 * 2 * _SIZE**3 / (time.perf_counter() - start)


if __name__ == "__main__":
  main()
