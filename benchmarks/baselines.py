"""The quickstart's BLT and its baselines side by side: sizes, operations, bits per byte.

  python benchmarks/baselines.py [--train] [--seeds 3] [--stages megabyte,flat] [--json FILE]

Without `--train`, sizes and operations only. With it, each model is trained by its config, once
for each seed, and evaluated on held-out text; the BLT needs the quickstart's entropy model, the
Llama its tokenizer.
"""

import argparse
import importlib.util
import json
import pathlib
import statistics

import jax

from blt_jax import config as settings
from blt_jax import kinds, train
from blt_jax.models import init

_FILE = pathlib.Path(__file__).parents[1] / "configs" / "quickstart.py"
# Of the quickstart's text; of BPE pieces as `train_tokenizer` prints it.
_PATCH_SIZES = {"blt": 4.5, "static": 6.0, "space": 8.0, "spacebyte": 8.0, "bpe": 3.216}


def main() -> None:
  """Prints a table."""
  stages = _load().STAGES
  known = [stage for stage in stages if stage != "entropy"]
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--train", action="store_true", help="train them too")
  parser.add_argument("--seeds", type=int, default=1, help="runs of each")
  parser.add_argument("--stages", default=",".join(known), help="which ones")
  parser.add_argument("--json", help="also write the numbers to this file")
  arguments = parser.parse_args()
  rows = []
  print("model        parameters  FLOPs/byte: paper    real   bits per byte of each seed")
  for stage in arguments.stages.split(","):
    row = measure(stage)
    if arguments.train:
      row["bpb"] = [train_once(stage, seed) for seed in range(arguments.seeds)]
    rows.append(row)
    bpb = row.get("bpb", [])
    mean = f"  mean {statistics.mean(bpb):.3f}" if len(bpb) > 1 else ""
    print(
      f"{stage:12} {row['parameters']:10,d}  {row['paper_flops'] / 1e6:13.3f} M"
      f"  {row['real_flops'] / 1e6:.3f} M   {' '.join(f'{x:.3f}' for x in bpb)}{mean}",
      flush=True,
    )
  if arguments.json:
    pathlib.Path(arguments.json).write_text(json.dumps(rows, indent=2))


def measure(stage: str) -> dict:
  """Parameters, and forward FLOPs per byte by the paper's count and by the code's."""
  config = _load().get_config(stage)
  model = settings.make_model_config(config.model)
  shapes = init.abstract_params(kinds.build_model(model))
  shape = settings.make_batch_shape(config)
  patch_size = _PATCH_SIZES.get(stage, 1.0)
  row_bytes = shape.seq_len * (patch_size if stage == "bpe" else 1)
  return {
    "stage": stage,
    "parameters": sum(x.size for x in jax.tree.leaves(shapes)),
    "paper_flops": kinds.flops_per_byte(model, patch_size, row_bytes),
    "real_flops": kinds.model_flops(model, shape.seq_len, shape.num_patches) / (3 * row_bytes),
  }


def train_once(stage: str, seed: int) -> float:
  """Held-out bits per byte of one run."""
  config = _load().get_config(stage)
  config.seed = seed
  config.workdir = f"runs/baselines/{stage}_{seed}"
  config.logging.tensorboard = False
  numbers = train.train(config)
  if numbers is None:
    raise SystemExit("stopped")
  return numbers["bpb"]


def _load():
  spec = importlib.util.spec_from_file_location("quickstart", _FILE)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


if __name__ == "__main__":
  main()
