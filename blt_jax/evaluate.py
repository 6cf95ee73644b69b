"""Bits per byte of a trained model on text.

python -m blt_jax.evaluate --run=runs/quickstart/blt --data=PATH
"""

import argparse
import dataclasses
import json

import jax
from jax.sharding import NamedSharding, PartitionSpec

from blt_jax import config as settings
from blt_jax.cli import logs
from blt_jax.data import pipeline
from blt_jax.parallel import sharding
from blt_jax.runs import corpus, folder, patcher
from blt_jax.runs.evaluation import Evaluator


def main(argv: list[str] | None = None) -> None:
  """Prints one JSON object: loss, bpb, patch_size, bytes."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--run", required=True, help="folder of the run")
  parser.add_argument("--data", required=True, help="text, as in config.data.path")
  parser.add_argument("--max_batches", type=int, help="stop early; by default all")
  args = parser.parse_args(argv)
  logs.show_progress()
  run = folder.load_run(args.run)
  section, stored = run.config.patching, []
  if (manifest := corpus.find_manifest(args.data)) is not None:
    section.entropies, stored = "stored", [(args.data, manifest)]
  patch = patcher.load_patcher(section, stored).documents()
  documents = corpus.open_all(args.data, run.config.data)
  mesh = sharding.make_mesh()
  shape = settings.make_batch_shape(run.config)
  rows = -(-shape.batch_size // mesh.size) * mesh.size  # every device gets as many
  batches = pipeline.evaluation_batches(
    documents, patch, dataclasses.replace(shape, batch_size=rows)
  )
  evaluate = Evaluator(run.model, batches, mesh, args.max_batches)
  params = jax.device_put(run.params, NamedSharding(mesh, PartitionSpec()))
  print(json.dumps(evaluate(params)))


if __name__ == "__main__":
  logs.run(main)
