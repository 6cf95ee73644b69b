"""How alike runs judge what is hard: rank correlations of their entropies over a text.

  python benchmarks/entropy_ranks.py --run=runs/entropy --run=runs/end_to_end --data=PATH

A run is an entropy model, a table of `train_table`, or an end-to-end BLT with either head. Its
entropies are those that decide whether each byte starts a patch. Correlations are Spearman's.
"""

import argparse
import json

import numpy as np
from scipy import stats

from blt_jax import kinds, show_patches, tokenizer
from blt_jax.data import mixture
from blt_jax.data.reading import sources
from blt_jax.entropy.neural import BatchScorer
from blt_jax.entropy.table import TableModel, is_table
from blt_jax.runs import folder

_LENGTH = 2048  # bytes of a piece; all have as many, so that models compile once


def main() -> None:
  """Measures and prints a table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--run", action="append", required=True, help="give two or more")
  parser.add_argument("--data", required=True, help="text, as in config.data.path")
  parser.add_argument("--pieces", type=int, default=100, help=f"of {_LENGTH} bytes each (100)")
  parser.add_argument("--json", help="write the numbers to this file as well")
  args = parser.parse_args()
  if len(args.run) < 2:
    parser.error("give two or more --run.")
  texts = read(args.data, args.pieces)
  if not texts:
    parser.error(f"{args.data} has no document of {_LENGTH} bytes or more.")
  entropies = [np.concatenate(entropies_of(run, texts)) for run in args.run]
  ranks = np.array([[stats.spearmanr(a, b).statistic for b in entropies] for a in entropies])
  print(f"Over {len(entropies[0]):,} bytes:")
  for run, row in zip(args.run, ranks, strict=True):
    print(f"{run:40} " + " ".join(f"{value:6.3f}" for value in row))
  if args.json:
    with open(args.json, "w") as file:
      json.dump({"runs": args.run, "ranks": ranks.tolist()}, file, indent=2)


def read(path: str, count: int) -> list[bytes]:
  """The beginnings of documents that are long enough."""
  dataset, texts = sources.open_source(path), []
  for document in mixture.mix({"text": (dataset, 1.0)}, seed=0, num_epochs=1):
    if len(document.text) >= _LENGTH:
      texts.append(document.text[:_LENGTH])
    if len(texts) == count:
      break
  return texts


def entropies_of(path: str, texts: list[bytes]) -> list[np.ndarray]:
  """Nats [n] of each text that decide about its bytes from the second on."""
  ids = [tokenizer.encode(text, add_eos=False) for text in texts]
  if is_table(path):
    model = TableModel(path)
    found = [model(tokens) for tokens in ids]
  elif kinds.find_kind(folder.load_config(path).model.kind).measures_entropies:
    run = folder.load_run(path)
    _, found = show_patches.measure_inside(np.stack(ids), run, run.model.config.threshold)
  else:
    found = BatchScorer(*folder.load_entropy_model(path))(ids)
  return [np.asarray(one)[1:-1] for one in found]  # what the last one decides is not there


if __name__ == "__main__":
  main()
