"""Whether a model learns from whole documents as well as from their pieces in random order.

  python benchmarks/mixing.py --data=PATH --heldout=PATH [--json=FILE]

Trains the models of `configs/quickstart.py` on the first `--num_documents` of PATH, once as
they are and once cut to 2 kB and shuffled, for each seed. Rows that mix make the order of
the text no matter: held-out bits per byte, on whole documents, are the same up to noise.
"""

import argparse
import itertools
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile

import numpy as np

from blt_jax.data.reading import sources

_PIECE = 2048  # bytes
_MODELS = {
  "entropy": ["--config=configs/quickstart.py:entropy", "--config.num_steps=200"],
  "space": [
    "--config=configs/quickstart.py",
    "--config.num_steps=200",
    "--config.patching.scheme=space",
    "--config.patching.entropy_model=",
  ],
}


def main() -> None:
  """Trains and prints a table."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--data", required=True, help="whole documents, as in config.data.path")
  parser.add_argument("--heldout", required=True, help="other whole documents")
  parser.add_argument("--num_documents", type=int, default=1200)
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--models", nargs="+", default=list(_MODELS), choices=list(_MODELS))
  parser.add_argument("--json", help="write the numbers to this file as well")
  args = parser.parse_args()
  rows = []
  print("model    seed   whole     cut  difference  documents/batch  repeated", flush=True)
  with tempfile.TemporaryDirectory() as folder:
    home = pathlib.Path(folder)
    write_texts(args.data, args.num_documents, home)
    for model, seed in itertools.product(args.models, range(args.seeds)):
      whole, cut = (train(home, model, name, seed, args.heldout) for name in ("whole", "cut"))
      row = {
        "model": model,
        "seed": seed,
        "whole": whole["bpb"],
        "cut": cut["bpb"],
        "documents_per_batch": whole["documents_per_batch"],
        "documents_repeated": whole["documents_repeated"],
      }
      rows.append(row)
      print(
        f"{model:7}  {seed:4d}  {row['whole']:6.3f}  {row['cut']:6.3f}  "
        f"{row['whole'] - row['cut']:+10.3f}  {row['documents_per_batch']:15.1f}  "
        f"{row['documents_repeated']:8.1%}",
        flush=True,
      )
  if args.json:
    pathlib.Path(args.json).write_text(json.dumps(rows, indent=2) + "\n")


def write_texts(path: str, count: int, home: pathlib.Path) -> None:
  """Writes documents to `whole.jsonl`, and their pieces in random order to `cut.jsonl`."""
  dataset = sources.open_source(path)
  documents = [document.text for document in itertools.islice(iter(dataset), count)]
  pieces = [piece for text in documents for piece in cut_text(text)]
  random.Random(0).shuffle(pieces)
  for name, texts in (("whole", documents), ("cut", pieces)):
    lines = (json.dumps({"text": text.decode()}) + "\n" for text in texts)
    (home / f"{name}.jsonl").write_text("".join(lines))


def cut_text(text: bytes) -> list[bytes]:
  """Pieces of at most 2 kB of UTF-8, whole characters each."""
  pieces = []
  while len(text) > _PIECE:
    end = next(i for i in range(_PIECE, 0, -1) if text[i] & 0xC0 != 0x80)
    pieces.append(text[:end])
    text = text[end:]
  return [*pieces, text]


def train(
  home: pathlib.Path, model: str, name: str, seed: int, heldout: str
) -> dict[str, float]:
  """Trains a model; returns its held-out bits per byte and how its batches were mixed."""
  workdir = home / f"{model}_{name}_{seed}"
  command = [sys.executable, "-m", "blt_jax.train", *_MODELS[model]]
  settings = {
    "workdir": workdir,
    "seed": seed,
    "data.path": home / f"{name}.jsonl",
    "data.heldout_path": heldout,
    "data.num_streams": 1,
    "logging.tensorboard": False,
  }
  command += [f"--config.{setting}={value}" for setting, value in settings.items()]
  compiled = {"JAX_COMPILATION_CACHE_DIR": str(home / "cache")}
  with (home / "log").open("w") as log:
    subprocess.run(command, check=True, stderr=log, env=os.environ | compiled)
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
  reports = [line for line in lines if line["kind"] == "train"]
  mixing = ("documents_per_batch", "documents_repeated")
  means = {key: float(np.mean([r[key] for r in reports])) for key in mixing}
  return {"bpb": lines[-1]["bpb"], **means}


if __name__ == "__main__":
  main()
