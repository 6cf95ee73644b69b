"""Bits per byte of a trained model on text, or its scores at tasks.

  python -m blt_jax.evaluate --run=runs/quickstart/blt --data=PATH
  python -m blt_jax.evaluate --run=runs/quickstart/blt --data=PATH --step=best
  python -m blt_jax.evaluate --run=RUN --tasks=hellaswag,cute --data=FOLDER --output=DIR
  python -m blt_jax.evaluate --run=RUN --run=OTHER --tasks=piqa --data=sample --png=bars.png
  python -m blt_jax.evaluate --run=RUN --tasks=piqa --data=sample --threshold=0.6,0.3,0.1

Prints one JSON object: `loss` in nats per predicted byte, `bpb` in bits per byte, `patch_size`
in bytes, the shares of byte and patch slots in use, the number of `bytes`, and the `step` of
the checkpoint. Of tasks it prints a table.
"""

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import NamedSharding, PartitionSpec

from blt_jax import config as settings
from blt_jax.cli import logs, plots, run_flags
from blt_jax.cli.parsing import Parser
from blt_jax.cli.task_bar import TaskBar
from blt_jax.data import pipeline
from blt_jax.evals import figures, samples, side_by_side, suite, variants
from blt_jax.evals import report as reports
from blt_jax.evals.memory import Memory
from blt_jax.parallel import sharding
from blt_jax.runs import checkpoint, corpus, folder, loading, ngrams
from blt_jax.runs.evaluation import Evaluator
from blt_jax.storage.folders import Folder


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
  run_flags.add(parser, "folder of the run; of --tasks also several", several=True)
  run_flags.add_entropies(parser, several=True)
  add = parser.add_argument
  add(
    "--data",
    required=True,
    metavar="PATH",
    help="text, as in config.data.path; of --tasks the folder of their files, or `sample`",
  )
  add(
    "--max_batches", type=int, metavar="N", help="of text, the first N batches; by default all"
  )
  add(
    "--tasks",
    metavar="NAME,...",
    help=f"of {', '.join(suite.TASKS)}, and files NAME.jsonl of your own",
  )
  add(
    "--bytes_per_patch",
    type=run_flags.numbers,
    metavar="N,...",
    help="of --tasks: the threshold that gives patches of this size",
  )
  add("--output", metavar="FOLDER", help="of --tasks: for results.json and items.jsonl")
  add(
    "--shots", metavar="FOLDER", help="of --tasks: of NAME_shots.jsonl, instead of beside NAME"
  )
  add("--limit", type=int, metavar="N", help="of --tasks: the first N rows of each")
  add("--seed", type=int, default=0, help="of --tasks: of noises")
  add(
    "--run_code", action="store_true", help="run the programs that the model writes; see docs"
  )
  add("--batch_size", type=int, default=8, metavar="N", help="of --tasks: texts at a time")
  plots.add_flag(parser, "of --tasks: draw bars, or curves over several thresholds, here")
  args = parser.parse_args(argv)
  args.runs, args.run = args.run, args.run[0]
  args.thresholds = args.threshold or []
  args.threshold = args.thresholds[0] if args.thresholds else None
  return args


def _check_unused(args: argparse.Namespace) -> None:
  """Raises ValueError where a flag of --tasks would do nothing."""
  for name in ("output", "shots", "limit", "run_code", "bytes_per_patch", "png"):
    if getattr(args, name) not in (None, False):
      raise ValueError(f"--{name} is of --tasks, and would do nothing on text; leave it out.")
  if len(args.runs) > 1 or len(args.thresholds) > 1:
    raise ValueError("Several runs or thresholds go with --tasks; give text to one at a time.")


def _evaluate_tasks(args: argparse.Namespace) -> None:
  """Prints a table, and writes the files."""
  if args.max_batches is not None:
    raise ValueError("--max_batches is of text; give --limit for tasks.")
  names = args.tasks.split(",")
  data, sizes = samples.locate(args.data), args.bytes_per_patch or []
  variants.check(args.runs, args.thresholds, sizes)
  prepared = suite.prepare(names, data, args.limit, args.seed, args.run_code, args.shots)
  models = variants.make(args.runs, prepared, args.entropy_model, args.thresholds, sizes)
  told, results = {}, {}
  for model in models:
    step = checkpoint.find_step(model.run, args.step)
    about = {"run": model.run, "step": step, "threshold": model.rule}
    about["entropy_model"] = args.entropy_model
    inside = f"{args.output}/{model.label}" if args.output and len(models) > 1 else args.output
    memory = Memory(inside, about)
    told[model.label] = _ask(args, model, step, prepared, memory)
    about |= {"seed": args.seed, "limit": args.limit}
    results[model.label] = reports.to_results(told[model.label], data, about, model.patches)
    if inside:
      reports.save(inside, told[model.label], results[model.label], memory)
  if args.output and len(models) > 1:
    Folder(args.output).write_json("results.json", side_by_side.to_results(told, results))
  if args.png:
    figures.draw(told, models, args.png)
  show = side_by_side.to_table if len(models) > 1 else _show_one
  print(show(told), side_by_side.patches_table(models), sep="\n\n")


def _show_one(told: Mapping[str, suite.Report]) -> str:
  (report,) = told.values()
  return reports.to_table(report)


def _ask(
  args: argparse.Namespace,
  model: variants.Variant,
  step: int,
  prepared: Sequence[suite.Prepared],
  memory: Memory,
) -> suite.Report:
  """Asks one model all tasks."""
  loaded = loading.load_language_model(model.run, args.entropy_model, model.threshold, step)
  with TaskBar() as bar:

    def progress(task: str, done: int, total: int) -> None:
      bar(f"{model.label}: {task}", done, total)

    return suite.ask(loaded, prepared, args.batch_size, progress, memory)


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
