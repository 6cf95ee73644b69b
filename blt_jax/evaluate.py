"""Bits per byte of a trained model on text, or its scores at tasks.

  python -m blt_jax.evaluate --run=runs/quickstart/blt --data=PATH
  python -m blt_jax.evaluate --run=runs/quickstart/blt --data=PATH --step=best
  python -m blt_jax.evaluate --run=RUN --tasks=hellaswag,cute --data=FOLDER --output=DIR

Prints one JSON object: `loss` in nats per predicted byte, `bpb` in bits per byte, `patch_size`
in bytes, the shares of byte and patch slots in use, the number of `bytes`, and the `step` of
the checkpoint. Of tasks it prints a table.
"""

import argparse
import dataclasses
import json

import jax
from jax.sharding import NamedSharding, PartitionSpec

from blt_jax import config as settings
from blt_jax.cli import logs, run_flags
from blt_jax.cli.parsing import Parser
from blt_jax.cli.task_bar import TaskBar
from blt_jax.data import pipeline
from blt_jax.evals import report as reports
from blt_jax.evals import suite
from blt_jax.evals.memory import Memory
from blt_jax.parallel import sharding
from blt_jax.runs import checkpoint, corpus, folder, loading, ngrams
from blt_jax.runs.evaluation import Evaluator


def main(argv: list[str] | None = None) -> None:
  """Prints one JSON object, or a table of tasks."""
  args = _parse(argv)
  logs.show_progress()
  for name in ("max_batches", "limit", "batch_size"):
    value = getattr(args, name)
    if value is not None and value < 1:
      raise ValueError(f"--{name} must be 1 or more, got {value}.")
  if args.tasks is not None:
    _evaluate_tasks(args)
  else:
    _check_unused(args)
    _evaluate_text(args)


def _parse(argv: list[str] | None) -> argparse.Namespace:
  parser = Parser("evaluate", __doc__)
  run_flags.add(parser)
  run_flags.add_entropies(parser)
  add = parser.add_argument
  add(
    "--data",
    required=True,
    metavar="PATH",
    help="text, as in config.data.path; of --tasks the folder of their files",
  )
  add(
    "--max_batches", type=int, metavar="N", help="of text, the first N batches; by default all"
  )
  add("--tasks", metavar="NAME,...", help=f"of {', '.join(suite.TASKS)}")
  add("--output", metavar="FOLDER", help="of --tasks: for results.json and items.jsonl")
  add("--limit", type=int, metavar="N", help="of --tasks: the first N rows of each")
  add("--seed", type=int, default=0, help="of --tasks: of noises")
  add(
    "--run_code", action="store_true", help="run the programs that the model writes; see docs"
  )
  add("--batch_size", type=int, default=8, metavar="N", help="of --tasks: texts at a time")
  return parser.parse_args(argv)


def _check_unused(args: argparse.Namespace) -> None:
  """Raises ValueError where a flag of --tasks would do nothing."""
  for name in ("output", "limit", "run_code"):
    if getattr(args, name) not in (None, False):
      raise ValueError(f"--{name} is of --tasks, and would do nothing on text; leave it out.")


def _evaluate_tasks(args: argparse.Namespace) -> None:
  """Prints a table, and writes the files."""
  if args.max_batches is not None:
    raise ValueError("--max_batches is of text; give --limit for tasks.")
  names = args.tasks.split(",")
  suite.find_all(names, args.seed, args.run_code)  # before a model is loaded
  step = checkpoint.find_step(args.run, args.step)
  model = loading.load_language_model(args.run, args.entropy_model, args.threshold, step)
  asked = {name: getattr(args, name) for name in ("run", "entropy_model", "threshold")}
  memory = Memory(args.output, {**asked, "step": step})
  with TaskBar() as bar:
    report = suite.evaluate(
      model,
      names,
      args.data,
      args.limit,
      args.seed,
      args.batch_size,
      args.run_code,
      bar,
      memory,
    )
  about = {**memory.model, "seed": args.seed, "limit": args.limit}
  if args.output:
    results = reports.to_results(report, args.data, about)
    reports.save(args.output, report, results, memory)
  print(reports.to_table(report))


def _evaluate_text(args: argparse.Namespace) -> None:
  """Prints one JSON object."""
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
  print(json.dumps(evaluate(params) | {"step": run.step}))


if __name__ == "__main__":
  logs.run(main)
