"""How fast one core turns text into batches, and how full they are.

  python benchmarks/input_pipeline.py
  python benchmarks/input_pipeline.py --data=PATH --json=numbers.json

Rates are bytes of targets per second of processor time, all threads together, from
documents in shuffled order to batches, at 4.5 bytes per patch. The limit of stored entropies
is the time to read the records alone; that of a transformer its arithmetic at the rate of a
matrix product.
"""

import argparse
import dataclasses
import json
import pathlib
import tempfile
import time

import flax.linen as nn
import grain
import jax
import numpy as np

from blt_jax import patching, tokenizer, train_table
from blt_jax.data import mixture, pipeline
from blt_jax.data.packing import rows as packing
from blt_jax.data.reading import scored, shards, sources
from blt_jax.data.reading.documents import Document
from blt_jax.data.transforms import LookUpNgrams, PatchDocument
from blt_jax.entropy import frequent_ngrams, table
from blt_jax.entropy.neural import EntropyScorer
from blt_jax.models import init
from blt_jax.models.byte_lm import ByteLM
from blt_jax.models.config import ByteLMConfig, TransformerConfig
from blt_jax.patching import thresholds

_MEAN_PATCH = 4.5
_NUM_DOCUMENTS = 1_000_000  # the text is repeated
_SIZES = {"1M": (128, 5), "4M": (256, 5), "10M": (320, 8)}  # width and layers


def main() -> None:
  """Measures and prints a table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--data", default="stdlib", help="text, as in config.data.path")
  parser.add_argument("--megabytes", type=float, default=20, help="text to use (20)")
  parser.add_argument("--seq_len", type=int, default=4096, help="byte slots of a row (4,096)")
  parser.add_argument("--json", help="write the numbers to this file as well")
  args = parser.parse_args()
  texts = _read(args.data, args.megabytes)
  with tempfile.TemporaryDirectory() as folder:
    rows = measure(texts, args.seq_len, folder)
  print(f"{'pipeline':34}  {'MB/s':>8}  {'limit':>8}  {'byte slots':>10}  {'patch slots':>11}")
  for row in rows:
    limit = f"{row['limit']:8.3f}" if row["limit"] else " " * 8
    print(
      f"{row['name']:34}  {row['rate']:8.3f}  {limit}  {row['byte_slots']:10.1%}"
      f"  {row['patch_slots']:11.1%}"
    )
  if args.json:
    pathlib.Path(args.json).write_text(json.dumps(rows, indent=2) + "\n")


def measure(texts: list[bytes], seq_len: int, folder: str) -> list[dict]:
  """The rows of the table."""
  tables, info = train_table.train(texts, [], [1, 2, 3, 4, 5, 6, 7], 1 << 20, False)
  table.save_table(f"{folder}/table", tables, {"input": "", **info})
  model = table.TableModel(f"{folder}/table")
  entropies = [model(tokenizer.encode(text)) for text in texts]
  sample = [(tokenizer.encode(t), h) for t, h in zip(texts[:300], entropies, strict=False)]
  threshold = thresholds.find_threshold(sample, patching.PatchingConfig(), _MEAN_PATCH)
  rule = patching.PatchingConfig(threshold=threshold)
  stored = _store(f"{folder}/scored", texts, entropies)
  plain = grain.MapDataset.source([Document(text) for text in texts])
  space = patching.PatchingConfig(scheme="space")
  rows = [
    _row("stored entropies", stored, PatchDocument(rule), seq_len, 6, _read_rate(stored)),
    _row("the same, frequent n-grams", stored, PatchDocument(rule), seq_len, 6, None,
         complete=_look_up(texts)),
    _row("table model", plain, PatchDocument(rule, model), seq_len, 6, None),
    _row("space patching", plain, PatchDocument(space), seq_len, 6, None, mean=None),
  ]  # fmt: skip
  rate = _matmul_rate()
  for name, (dim, layers) in _SIZES.items():
    scorer, params = _transformer(dim, layers)
    rule = dataclasses.replace(rule, threshold=_random_threshold(scorer, texts))
    row = _row(f"transformer, {name} parameters", plain, PatchDocument(rule, scorer),
               seq_len, 10, rate / (2 * params) / 1e6, pool_size=4)  # fmt: skip
    rows.append(row)
  return rows


def _row(
  name, documents, patch, seq_len, seconds, limit, pool_size=256, mean=_MEAN_PATCH,
  complete=lambda batch: batch,
):  # fmt: skip
  if mean is None:
    mean = np.mean(np.concatenate([patch(documents[i])["patch_lengths"] for i in range(100)]))
  shape = pipeline.BatchShape(8, seq_len, round(seq_len / mean), pool_size)
  # As many as a corpus has: shuffling few indices costs Grain more.
  many = documents.repeat(-(-_NUM_DOCUMENTS // len(documents)))
  mixed = mixture.mix({"text": (many, 1.0)}, seed=0)
  batches = iter(pipeline.training_batches(mixed, patch, shape))
  next(batches)  # fills the pool, compiles
  spent, targets, use = 0.0, 0, []
  while spent < seconds:
    start = time.process_time()
    batch = complete(next(batches))
    spent += time.process_time() - start
    targets += batch["loss_mask"].sum()
    use.append(packing.slot_use(batch))
  rate = targets / spent / 1e6
  slots = {k: float(np.mean([u[k] for u in use])) for k in use[0]}
  return {"name": name, "rate": float(rate), "limit": limit, **slots}


def _look_up(texts):
  """Adds the ids of six tables of 50,000 n-grams to batches."""
  counter = frequent_ngrams.NgramCounter(range(3, 9))
  counter.add(texts)
  tables = frequent_ngrams.to_tables(counter.most_frequent(50_000).values())
  return LookUpNgrams(tables, document_masks=True)


def _read(path, megabytes):
  texts, size = [], 0
  dataset = sources.open_source(path)
  for document in mixture.mix({"text": (dataset, 1.0)}, seed=0, num_epochs=1):
    texts.append(document.text)
    size += len(document.text)
    if size > megabytes * 1e6:
      break
  return texts


def _store(folder, texts, entropies):
  manifest = scored.Manifest("", 0, "", 8, "float32", "float16", False, "", 1)
  scored.begin(folder, manifest)
  documents = [Document(t, h) for t, h in zip(texts, entropies, strict=True)]
  progress = shards.Progress(num_shards=1, next_document=len(texts))
  shards.write_shard(folder, 0, documents, "float16", progress)
  shards.mark_done(folder, 0, dataclasses.asdict(progress))
  return scored.ScoredReader(folder)


def _read_rate(stored):
  order = np.random.default_rng(0).permutation(len(stored)).tolist()
  start = time.process_time()
  size = sum(len(stored[i].text) for i in order)
  return size / (time.process_time() - start) / 1e6


def _transformer(dim, layers):
  stack = TransformerConfig(dim, layers, dim // 32, window=128, mlp_multiple_of=32, unroll=True)
  config = ByteLMConfig(stack)
  params = nn.meta.unbox(init.init_params(ByteLM(config), jax.random.key(0)))
  return EntropyScorer(config, params), sum(x.size for x in jax.tree.leaves(params))


def _random_threshold(scorer, texts):
  sample = [(tokenizer.encode(t[:4000]), scorer(tokenizer.encode(t[:4000]))) for t in texts[:5]]
  return thresholds.find_threshold(sample, patching.PatchingConfig(), _MEAN_PATCH)


def _matmul_rate():
  """Floating-point operations per second of a matrix product."""
  a = jax.numpy.asarray(np.random.default_rng(0).normal(size=(1024, 1024)), np.float32)
  product = jax.jit(lambda a: a @ a)
  product(a).block_until_ready()
  start = time.process_time()
  for _ in range(10):
    result = product(a)
  result.block_until_ready()
  return 10 * 2 * 1024**3 / (time.process_time() - start)


if __name__ == "__main__":
  main()
