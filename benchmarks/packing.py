"""How full packed rows are, and how fast one core packs them.

  python benchmarks/packing.py [--source PATH ...] [--json FILE]

Each source (stdlib unless given) is packed alone and, if there are several, mixed with
the others in random order. Patches come from spaces, and from the entropies of a table
model that learns from every fifth document, which is then left out; its threshold gives
`--bytes_per_patch` over the mixture. P is S divided by the mean patch size of the text.

Rows of a whole epoch count, the last ones too. "docs/8" are the different documents of eight
rows, and "again" the share of them that the eight rows before had. The limit of the speed is
copying: per byte of text 9 bytes are written as token, target and mask. That is timed as well.
"""

import argparse
import itertools
import json
import pathlib
import random
import tempfile
import time

import grain
import numpy as np

from blt_jax import patching, tokenizer, train_table
from blt_jax.data.packing import rows as packing
from blt_jax.data.reading import sources
from blt_jax.entropy import table
from blt_jax.patching import thresholds
from blt_jax.storage import files

_ORDERS = (1, 2, 3, 4, 5)
_SAMPLE_BYTES = 8_000_000  # for the threshold


class _InMemory(grain.IterDataset):
  """Documents at hand, so that packing alone is timed."""

  def __init__(self, documents: list):
    super().__init__()
    self._documents = documents

  def __iter__(self) -> "_InMemoryIterator":
    return _InMemoryIterator(self._documents)


class _InMemoryIterator(grain.DatasetIterator):
  def __init__(self, documents: list):
    super().__init__()
    self._documents, self._next = documents, 0

  def __next__(self):
    if self._next == len(self._documents):
      raise StopIteration
    self._next += 1
    return self._documents[self._next - 1]

  def get_state(self):
    return {"next": self._next}

  def set_state(self, state):
    self._next = state["next"]


def main() -> None:
  """Measures and prints a table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--source", action="append", help="text; see sources.read_documents")
  parser.add_argument("--max_bytes", type=int, default=16_000_000, help="of each source")
  parser.add_argument("--bytes_per_patch", type=float, default=4.5)
  parser.add_argument("--seq_lens", default="2048,4096,8192")
  parser.add_argument("--json", help="also write the numbers to this file")
  arguments = parser.parse_args()
  texts = {
    pathlib.Path(path).name.partition(".")[0]: read(path, arguments.max_bytes)
    for path in arguments.source or [files.STDLIB]
  }
  results = []
  print(
    "patches  text            docs  mean     S     P  bytes  patches  MB/s  re-read MB  "
    "docs/8  again"
  )
  for scheme, patched in patch_all(texts, arguments.bytes_per_patch).items():
    if len(patched) > 1:
      patched["mixed"] = [d for documents in patched.values() for d in documents]
    for name, documents in patched.items():
      random.Random(0).shuffle(documents)
      for seq_len in map(int, arguments.seq_lens.split(",")):
        r = {"patches": scheme, "text": name, **measure(documents, seq_len)}
        results.append(r)
        print(
          f"{scheme:7}  {name[:14]:14} {r['documents']:5d}  {r['mean']:.2f}  {r['S']:4d} "
          f"{r['P']:5d}  {100 * r['byte_slots']:4.1f}%  {100 * r['patch_slots']:6.1f}%  "
          f"{r['mb_per_second']:4.0f}  {r['reread_mb']:10.1f}  "
          f"{r['documents_per_batch']:6.1f}  {r['documents_repeated']:5.1%}",
          flush=True,
        )
  limit = copying_limit()
  print(f"Writing tokens, targets and masks alone: {limit:.0f} MB/s of text")
  results.append({"patches": "limit", "mb_per_second": limit})
  if arguments.json:
    pathlib.Path(arguments.json).write_text(json.dumps(results, indent=2))


def read(path: str, max_bytes: int) -> list[bytes]:
  """Documents of a source, up to this many bytes."""
  texts = sources.read_documents(path)
  ends = np.cumsum([len(text) for text in texts])
  return texts[: 1 + int(np.searchsorted(ends, max_bytes))]


def patch_all(texts: dict[str, list[bytes]], bytes_per_patch: float) -> dict[str, dict]:
  """Patches the documents under either scheme: scheme, name of the source, documents."""
  learned = [d for documents in texts.values() for d in documents[::5]]
  rest = {
    name: [tokenizer.encode(d) for i, d in enumerate(documents) if i % 5]
    for name, documents in texts.items()
  }
  score = train(learned)
  scored = {name: [(t, score(t)) for t in tokens] for name, tokens in rest.items()}
  rule = patching.PatchingConfig(scheme="entropy")
  sample = [pair for pairs in scored.values() for pair in pairs]
  random.Random(0).shuffle(sample)
  ends = np.cumsum([len(tokens) for tokens, _ in sample])
  sample = sample[: 1 + int(np.searchsorted(ends, _SAMPLE_BYTES))]
  threshold = thresholds.find_threshold(sample, rule, bytes_per_patch)
  configs = {
    "entropy": patching.PatchingConfig(scheme="entropy", threshold=threshold),
    "space": patching.PatchingConfig(scheme="space"),
  }
  return {
    scheme: {name: [patch(*pair, config) for pair in pairs] for name, pairs in scored.items()}
    for scheme, config in configs.items()
  }


def train(documents: list[bytes]) -> table.TableModel:
  """A table model of these documents."""
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "table"
    tables, info = train_table.train(documents, documents[:1], _ORDERS, 1 << 22, False)
    table.save_table(path, tables, info)
    return table.TableModel(path)


def patch(
  tokens: np.ndarray, entropies: np.ndarray, config: patching.PatchingConfig
) -> dict[str, np.ndarray]:
  """A document as PackRows takes it."""
  lengths = patching.patch_lengths(tokens[None], config, entropies[None], include_next=False)
  return {"tokens": tokens, "patch_lengths": lengths[0]}


def measure(documents: list, seq_len: int) -> dict[str, float]:
  """Packs all documents once for the use of slots, and three times for the speed."""
  sizes = np.array([len(d["tokens"]) for d in documents])
  mean = sizes.sum() / sum(len(d["patch_lengths"]) for d in documents)
  num_patches = round(seq_len / mean)
  rows = packing.PackRows(_InMemory(documents), seq_len, num_patches)
  before = np.append(0, np.cumsum(sizes))  # ids before each document
  use, reread, names = [], 0, []
  iterator = iter(rows)
  for row in iterator:
    use.append(packing.slot_use(row))
    names.append(set(row["documents"].tolist()) - {0})
    state = iterator.get_state()
    reread = max(reread, before[state["read"]] - before[state["documents"]["next"]])
  seconds = min(_seconds(rows) for _ in range(3))
  return {
    "documents": len(documents),
    "mean": float(mean),
    "S": seq_len,
    "P": num_patches,
    "byte_slots": float(np.mean([u["byte_slots"] for u in use])),
    "patch_slots": float(np.mean([u["patch_slots"] for u in use])),
    "mb_per_second": float((sizes.sum() - len(sizes)) / seconds / 1e6),
    "reread_mb": float(reread / 1e6),
    **mixing(names),
  }


def mixing(names: list[set[int]]) -> dict[str, float]:
  """How many documents batches of eight rows hold, given those of each row."""
  batches = [set().union(*names[i : i + 8]) for i in range(0, len(names) - 7, 8)]
  repeated = [len(a & b) / len(b) for a, b in itertools.pairwise(batches)]
  return {
    "documents_per_batch": float(np.mean([len(batch) for batch in batches])),
    "documents_repeated": float(np.mean(repeated)),
  }


def copying_limit(seq_len: int = 8192) -> float:
  """MB/s of text at which rows could be written if nothing had to be decided."""
  text, count = np.full(1_000_000, 80, np.int32), 2000
  start = time.process_time()
  for i in range(count):
    tokens = text[i : i + seq_len + 1].copy()
    tokens[1:].copy()
    np.ones(seq_len, bool)
  return seq_len * count / (time.process_time() - start) / 1e6


def _seconds(rows: packing.PackRows) -> float:
  """Processor time of an epoch."""
  start = time.process_time()
  for _ in rows:
    pass
  return time.process_time() - start


if __name__ == "__main__":
  main()
