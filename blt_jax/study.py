r"""Compares models at equal training FLOPs: trains all that a plan names, and reports.

  python -m blt_jax.study --plan=configs/study_tiny.py --output=runs/study --dry_run
  python -m blt_jax.study --plan=configs/study_tiny.py --output=runs/study
  python -m blt_jax.study --output=runs/report --runs=blt=runs/a,runs/b --runs=bpe=runs/c,runs/d

The same command goes on with a study that was stopped. `report/report.md` in its folder has the
tables; the last command writes such a report of runs that were trained otherwise.
"""

import argparse
from collections.abc import Mapping, Sequence

from absl import logging

from blt_jax.cli import logs, plots
from blt_jax.cli.parsing import Parser
from blt_jax.parallel import distributed
from blt_jax.studies import bill, made, measure, report, runner
from blt_jax.studies import plan as plans
from blt_jax.studies.study import Measured, Study


def main(argv: list[str] | None = None) -> int | None:
  """Reads the plan, says what it costs, trains and reports.

  Returns:
    The exit status: 130 after Ctrl-C.
  """
  args = _parse(argv)
  logs.show_progress()
  plots.import_pyplot()  # hours later would be too late
  if args.runs:
    print(report.of_runs(args.output, args.runs, args.reference))
    return None
  plan = plans.load(args.plan, _text(args))
  study = Study(plan, args.output, args.arms.split(",") if args.arms else ())
  reference = args.reference or plan.reference
  if reference not in plan.arms:
    raise ValueError(f"--reference={reference} is no arm of the plan: {tuple(plan.arms)}.")
  if args.report_only:
    print(report.of_study(study, reference))
    return None

  # --- What is made once, each by a process of its own
  study.begin()
  bill.check_early(study, measure.text_size(study))
  if args.dry_run:
    made.make_tokenizers(plan, study.active_configs, study.made)
  else:
    made.make(plan, study.active_configs, study.made)

  # --- One process for each GPU
  if args.gpus and not args.dry_run:
    gpus = args.gpus.split(",")
    rest = [f"--{name}={value}" for name, value in vars(args).items() if value]
    rest = [a for a in rest if not a.startswith("--gpus=")]
    runner.spread([*rest, "--dry_run"], gpus, study.home.path)  # which measures
    _say_cost(study, *measure.measure_all(study))
    runner.spread(rest, gpus, study.home.path)
    print(report.of_study(study, reference))
    return None

  # --- All in this process
  distributed.start()
  measured, stood_in = measure.measure_all(study)
  _say_cost(study, measured, stood_in)
  if args.dry_run:
    return None
  if runner.work(study, measured):
    print(report.of_study(study, reference))
  else:
    logging.info("Stopped. The same command goes on.")
  return distributed.exit_status()


def _parse(argv: list[str] | None) -> argparse.Namespace:
  parser = Parser("study", __doc__)
  add = parser.add_argument
  add("--plan", metavar="FILE", help="the comparison, such as configs/study_tiny.py")
  add("--output", required=True, metavar="FOLDER", help="for all that the study writes")
  add("--dry_run", action="store_true", help="measure and say what it will cost; train nothing")
  add("--report_only", action="store_true", help="report what is done so far; train nothing")
  add(
    "--runs", action="append", metavar="[LABEL=]FOLDER,...",
    help="report these runs, several seeds under one label; may be given several times",
  )  # fmt: skip
  add("--reference", metavar="ARM", help="compare with this one, by default that of the plan")
  add("--arms", metavar="NAME,...", help="train only these arms of the plan")
  add("--data", metavar="PATH", help="text to learn from, instead of the plan's")
  add("--heldout", metavar="PATH", help="text to measure on, instead of the plan's")
  add(
    "--gpus", metavar="N,...",
    help="a process for each of these GPUs, as CUDA_VISIBLE_DEVICES names them; by default one "
    "process with what there is",
  )  # fmt: skip
  args = parser.parse_args(argv)
  if bool(args.plan) == bool(args.runs):
    parser.error("give --plan=configs/study_tiny.py, or --runs=FOLDER,... to report on.")
  return args


def _text(args: argparse.Namespace) -> dict[str, str]:
  given = {"data.path": args.data, "data.heldout_path": args.heldout}
  return {name: value for name, value in given.items() if value is not None}


def _say_cost(study: Study, measured: Mapping[str, Measured], stood_in: Sequence[str]) -> None:
  """Prints it; raises ValueError if there is too little text."""
  text = measure.text_size(study)
  print(bill.to_text(study, measured, text, stood_in), flush=True)
  bill.check_epochs(study, measured, text)


if __name__ == "__main__":
  logs.run(main)
