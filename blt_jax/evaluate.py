"""Bits per byte of a trained model on text, or its scores at tasks.

  python -m blt_jax.evaluate --run=runs/quickstart/blt --data=PATH
  python -m blt_jax.evaluate --run=runs/quickstart/blt --data=heldout --step=best
  python -m blt_jax.evaluate --run=RUN --data=de.jsonl --data=ru.jsonl --by=domain --output=DIR
  python -m blt_jax.evaluate --run=RUN --tasks=hellaswag,cute --data=FOLDER --output=DIR
  python -m blt_jax.evaluate --run=RUN --run=OTHER --tasks=piqa --data=sample --png=bars.png
  python -m blt_jax.evaluate --run=RUN --tasks=piqa --data=sample --threshold=0.6,0.3,0.1

Of text it prints a table on a terminal, elsewhere one JSON object: `bpb` in bits per byte of
all text, of each data set and of each value of a field, `loss` in nats per predicted byte, of
pictures `bits_per_dimension`, `patch_size` in bytes, the shares of byte and patch slots in use,
the numbers of `documents`, `bytes` and `files`, and the `step` of the checkpoint. Of tasks it
prints a table.
"""

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Mapping, Sequence

import jax
from ml_collections import ConfigDict

from blt_jax import config as settings
from blt_jax import kinds
from blt_jax.cli import logs, plots, run_flags, source_flags
from blt_jax.cli.parsing import Parser
from blt_jax.cli.task_bar import TaskBar
from blt_jax.evals import (
  figures,
  samples,
  side_by_side,
  suite,
  text_report,
  text_scores,
  text_sources,
  variants,
)
from blt_jax.evals import report as reports
from blt_jax.evals.memory import Memory
from blt_jax.evals.text_scores import TextScorer
from blt_jax.parallel import sharding
from blt_jax.runs import (
  checkpoint,
  completion,
  corpus,
  device_entropies,
  entropy_digest,
  folder,
  loading,
  ngrams,
)
from blt_jax.runs.patcher import Patcher
from blt_jax.storage.folders import Folder

# Flags that only one of the two forms has a use for.
_OF_TASKS = {
  "limit": None, "shots": None, "seed": 0, "batch_size": 8, "run_code": False,
  "bytes_per_patch": None,
}  # fmt: skip
_OF_TEXT = (
  "max_batches", "by", "context", "text_field", "on_error", "invalid_utf8", "format", "template"
)  # fmt: skip


def main(argv: list[str] | None = None) -> None:
  """Prints bits per byte, or a table of tasks."""
  args = _parse(argv)
  logs.show_progress()
  _check_use(args)
  for name in ("max_batches", "limit", "batch_size", "context"):
    value = getattr(args, name)
    if value is not None and value < 1:
      raise ValueError(f"--{name} must be 1 or more, got {value}.")
  if args.tasks is not None:
    _evaluate_tasks(args)
  else:
    _evaluate_text(args)


def _parse(argv: list[str] | None) -> argparse.Namespace:
  parser = Parser("evaluate", __doc__)
  run_flags.add(parser, "folder of the run; of --tasks also several", several=True)
  run_flags.add_entropies(parser, several=True)
  add = parser.add_argument
  add(
    "--data",
    required=True,
    action="append",
    metavar="PATH",
    help="text, as in config.data.path, or `heldout`, what the run held out; may be given "
    "several times. Of --tasks the folder of their files, or `sample`",
  )
  add("--output", metavar="FOLDER", help="for results.json; and items.jsonl or table.txt")
  plots.add_flag(parser, "draw bars, or curves over several thresholds, here")
  _add_flags_of_text(parser)
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
  add(
    "--shots", metavar="FOLDER", help="of --tasks: of NAME_shots.jsonl, instead of beside NAME"
  )
  add("--limit", type=int, metavar="N", help="of --tasks: the first N rows of each")
  add("--seed", type=int, help=f"of --tasks: of noises ({_OF_TASKS['seed']})")
  batch_size = _OF_TASKS["batch_size"]
  add("--batch_size", type=int, metavar="N", help=f"of --tasks: texts at a time ({batch_size})")
  add(
    "--run_code", action="store_true", help="run the programs that the model writes; see docs"
  )
  args = parser.parse_args(argv)
  args.runs, args.run = args.run, args.run[0]
  args.thresholds = args.threshold or []
  args.threshold = args.thresholds[0] if args.thresholds else None
  return args


def _add_flags_of_text(parser: Parser) -> None:
  add = parser.add_argument
  add(
    "--by",
    type=_fields,
    default=[],
    metavar="FIELD,...",
    help="of text: bits per byte also for each value of these fields of rows, such as lang",
  )
  add(
    "--context",
    type=int,
    metavar="N",
    help="of text: let a prediction see at most N bytes before it; by default the run's rows",
  )
  add(
    "--max_batches",
    type=int,
    metavar="N",
    help="of text: the first N batches of each data set; by default all",
  )
  source_flags.add(parser, "of text; by default as in the run")


def _fields(text: str) -> list[str]:
  """A type for argparse: names of fields, each once."""
  names = text.split(",")
  if "" in names or len(set(names)) < len(names):
    raise argparse.ArgumentTypeError(f"{text!r} must be names of fields, each once")
  return names


def _check_use(args: argparse.Namespace) -> None:
  """Raises ValueError where a flag would do nothing; gives the others their defaults."""
  is_text = args.tasks is None
  for name in _OF_TASKS if is_text else _OF_TEXT:
    if getattr(args, name) not in (None, False, []):
      one, other = ("--tasks", "text") if is_text else ("text", "--tasks")
      hint = "; give --limit for tasks" if name == "max_batches" else ""
      raise ValueError(f"--{name} is of {one}, and would do nothing on {other}{hint}.")
  if is_text and (len(args.runs) > 1 or len(args.thresholds) > 1):
    raise ValueError("Several runs or thresholds go with --tasks; give text to one at a time.")
  if not is_text and len(args.data) > 1:
    raise ValueError("--tasks takes one folder of --data; several data sets are of text.")
  for name, value in _OF_TASKS.items():
    if getattr(args, name) is None:
      setattr(args, name, value)


def _evaluate_tasks(args: argparse.Namespace) -> None:
  """Prints a table, and writes the files."""
  names = [name.strip() for name in args.tasks.split(",")]
  if "" in names:
    raise ValueError(f"--tasks={args.tasks} has an empty name; give names with commas between.")
  data, sizes = samples.locate(args.data[0]), args.bytes_per_patch or []
  variants.check(args.runs, args.thresholds, sizes)
  for run in args.runs:
    way_out = "measure it with --data and without --tasks"
    folder.check_reads_text(folder.find_config(run), run, way_out)
  prepared = suite.prepare(names, data, args.limit, args.seed, args.run_code, args.shots)
  steps = {run: checkpoint.find_step(run, args.step) for run in args.runs}
  if args.output:
    Folder(args.output).make_writable()
  models = variants.make(
    args.runs, prepared, args.entropy_model, args.thresholds, sizes, args.cumulative
  )
  told, results = {}, {}
  for model in models:
    step = steps[model.run]
    about = {"run": model.run, "step": step, "threshold": model.rule}
    about |= {"entropy_model": args.entropy_model, **_rule(args)}
    about["digest"] = entropy_digest.find(model.run, step)
    if args.entropy_model:
      about["entropy_digest"] = entropy_digest.find(args.entropy_model)
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
  loaded = loading.load_language_model(
    model.run, args.entropy_model, model.threshold, step, args.cumulative
  )
  with TaskBar() as bar:

    def progress(task: str, done: int, total: int) -> None:
      bar(f"{model.label}: {task}", done, total)

    return suite.ask(loaded, prepared, args.batch_size, progress, memory, jax.local_devices())


def _evaluate_text(args: argparse.Namespace) -> None:
  """Prints a table on a terminal, and elsewhere one JSON object; writes files."""
  run = folder.load_run(args.run, args.step)
  loading.check_pieces(run.config)
  options = source_flags.parse(args, corpus.source_options(run.config.data))
  if run.config.model.get("pixel_ngrams") and (args.context or options.pictures is None):
    raise ValueError(
      f"{args.run} has n-grams of pixels, which whole pictures have: leave --context out, and "
      "--format at pictures."
    )
  options = dataclasses.replace(options, fields=tuple(args.by))
  open_heldout = functools.partial(corpus.open_heldout, run.config.data)
  sources = text_sources.open_all(args.data, options, open_heldout)
  if args.output:
    Folder(args.output).make_writable()
  keep_whole = options.template is not None or options.pictures is not None
  patchers = _load_patchers(args, run.config.patching, sources)
  tables = ngrams.load(args.run, run.config.model)
  patcher, mesh = patchers[sources[0].name], sharding.make_mesh()
  shape = patcher.shape_of_rows(settings.make_batch_shape(run.config))
  whole = kinds.read_all(run.model)
  model, named = device_entropies.attach_loaded(whole, patcher, mesh, tables)
  scorer = TextScorer.make(
    model,
    run.params,
    mesh,
    dataclasses.replace(shape, keep_whole=keep_whole),
    completion.make(tables, run.config.model),
    named,
  )
  patched = {s.name: (s, patchers[s.name].rows()) for s in sources}
  with TaskBar() as bar:
    found = text_scores.score_all(patched, scorer, args.context, args.max_batches, bar)
  rule = patcher.config
  by_threshold = rule.scheme == "entropy" or patcher.patched_by == loading.HEAD
  about = {
    "run": args.run,
    "step": run.step,
    "threshold": rule.threshold if by_threshold else None,
    "entropy_model": args.entropy_model,
    **_rule(args),
    "context": args.context,
    "max_batches": args.max_batches,
  }
  results = text_report.to_results(found, sources, about)
  if args.output:
    text_report.save(args.output, results)
  if args.png:
    text_report.draw(results, args.png)
  print(text_report.to_table(results) if sys.stdout.isatty() else json.dumps(results))


def _rule(args: argparse.Namespace) -> dict[str, bool]:
  """What to say of a rule that is not the run's."""
  return {"cumulative": True} if args.cumulative else {}


def _load_patchers(
  args: argparse.Namespace, section: ConfigDict, sources: Sequence[text_sources.Source]
) -> dict[str, Patcher]:
  """Of each source by name; stored entropies have one of their own."""

  @functools.cache
  def load(path: str | None) -> Patcher:
    return loading.load_patcher(
      section, args.run, args.entropy_model, args.threshold, path, args.cumulative
    )

  return {s.name: load(s.path if corpus.find_manifest(s.path) else None) for s in sources}


if __name__ == "__main__":
  logs.run(main)
