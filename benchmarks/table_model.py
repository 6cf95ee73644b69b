"""How fast a table model gives entropies, and patches, on one core.

  python benchmarks/table_model.py --table=runs/table --data=PATH [--json FILE]

The limit are the reads: one of a random entry for each order that is tried, until a
context is known. `limit` counts these reads alone, at the speed measured for them.
Times are processor time, the best of five passes.
"""

import argparse
import json
import pathlib
import time
from collections.abc import Callable

import numpy as np

from blt_jax import patching, tokenizer
from blt_jax.data.reading import sources
from blt_jax.entropy.contexts import ContextHash, context_windows, split_windows
from blt_jax.entropy.table import TableModel

_CONFIG = patching.PatchingConfig(threshold=2.0)


def main() -> None:
  """Measures and prints a table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--table", required=True, help="folder of a table model")
  parser.add_argument("--data", default="stdlib", help="text to patch")
  parser.add_argument("--max_bytes", type=int, default=3_000_000)
  parser.add_argument("--lengths", default="1000,3000,10000,30000,100000")
  parser.add_argument("--json", help="also write the numbers to this file")
  arguments = parser.parse_args()
  model = TableModel(arguments.table)
  text = b"".join(sources.read_documents(arguments.data))[: arguments.max_bytes]
  rows = [measure(model, text, int(n)) for n in arguments.lengths.split(",")]
  print("document  reads/B  reads ns/B  lookup ns/B  patching ns/B    MB/s   limit MB/s")
  for r in rows:
    print(
      f"{r['bytes']:8d}  {r['reads']:7.2f}  {r['read_ns']:10.1f}  {r['lookup_ns']:11.1f}"
      f"  {r['patching_ns']:13.1f}  {r['mb_per_s']:6.1f}  {1e3 / r['read_ns']:11.1f}"
    )
  if arguments.json:
    pathlib.Path(arguments.json).write_text(json.dumps(rows, indent=2))


def measure(model: TableModel, text: bytes, length: int) -> dict[str, float]:
  """Times documents of `length` bytes."""
  cuts = range(0, max(len(text) - length, 1), length)
  documents = [tokenizer.encode(text[i : i + length]) for i in cuts]
  num_ids = sum(map(len, documents))
  used = np.concatenate([model.look_up(t)[1] for t in documents])
  orders = np.array(model.info["orders"])
  reads = float((orders[None] >= np.maximum(used, 1)[:, None]).sum() / num_ids)
  read = reads * _read_seconds(model, documents) / num_ids
  entropies = [model(t) for t in documents]
  lookup = _seconds(lambda: [model(t) for t in documents]) / num_ids
  patch = _seconds(
    lambda: [
      patching.patch_lengths(t[None], _CONFIG, h[None], include_next=False)
      for t, h in zip(documents, entropies, strict=True)
    ]
  )
  return {
    "bytes": length,
    "reads": reads,
    "read_ns": read * 1e9,
    "lookup_ns": lookup * 1e9,
    "patching_ns": patch / num_ids * 1e9,
    "mb_per_s": 1e-6 / (lookup + patch / num_ids),
  }


def _read_seconds(model: TableModel, documents: list[np.ndarray]) -> float:
  """One read per id, from a table as large as that of the longest contexts."""
  table = np.ones(model.info["buckets"][-1], np.uint32)
  hash_contexts = ContextHash(model.info["orders"][-1], len(table))
  places = [
    hash_contexts(*split_windows(context_windows(t)))[0].astype(np.intp) for t in documents
  ]
  return _seconds(lambda: [table[p] for p in places])


def _seconds(run: Callable[[], object]) -> float:
  best = float("inf")
  for _ in range(5):
    start = time.process_time()
    run()
    best = min(best, time.process_time() - start)
  return best


if __name__ == "__main__":
  main()
