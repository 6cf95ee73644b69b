"""Bits per byte of a trained model on text.

  python -m blt_jax.evaluate --run=runs/quickstart/blt --data=PATH
  python -m blt_jax.evaluate --run=runs/quickstart/blt --data=PATH --step=best

Prints one JSON object: `loss` in nats per predicted byte, `bpb` in bits per byte, `patch_size`
in bytes, the shares of byte and patch slots in use, and the number of `bytes`.
"""

import dataclasses
import json

import jax
from jax.sharding import NamedSharding, PartitionSpec

from blt_jax import config as settings
from blt_jax.cli import logs, run_flags
from blt_jax.cli.parsing import Parser
from blt_jax.data import pipeline
from blt_jax.parallel import sharding
from blt_jax.runs import corpus, folder, loading, ngrams
from blt_jax.runs.evaluation import Evaluator


def main(argv: list[str] | None = None) -> None:
  """Prints one JSON object."""
  parser = Parser("evaluate", __doc__)
  run_flags.add(parser)
  run_flags.add_entropies(parser)
  parser.add_argument(
    "--data", required=True, metavar="PATH", help="text, as in config.data.path"
  )
  parser.add_argument(
    "--max_batches",
    type=int,
    metavar="N",
    help="look at the first N batches; by default at all",
  )
  args = parser.parse_args(argv)
  logs.show_progress()
  if args.max_batches is not None and args.max_batches < 1:
    raise ValueError(f"--max_batches must be 1 or more, got {args.max_batches}.")
  run = folder.load_run(args.run, args.step)
  patcher = loading.load_patcher(
    run.config.patching, args.run, args.entropy_model, args.threshold, args.data
  )
  patch = patcher.documents()
  documents = corpus.open_all(args.data, run.config.data)
  mesh = sharding.make_mesh()
  shape = settings.make_batch_shape(run.config)
  rows = -(-shape.batch_size // mesh.size) * mesh.size  # every device gets as many
  batches = pipeline.evaluation_batches(
    documents, patch, dataclasses.replace(shape, batch_size=rows)
  )
  look_up = ngrams.look_up(ngrams.load(args.run, run.config.model), run.config.model)
  batches = map(look_up, batches)
  evaluate = Evaluator(run.model, batches, mesh, args.max_batches, show_progress=True)
  params = jax.device_put(run.params, NamedSharding(mesh, PartitionSpec()))
  print(json.dumps(evaluate(params)))


if __name__ == "__main__":
  logs.run(main)
