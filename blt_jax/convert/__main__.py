"""Weights of others as runs, and runs as folders of Hugging Face.

  python -m blt_jax.convert --from=hf --path=FOLDER --output=RUN
  python -m blt_jax.convert --from=meta --path=FOLDER --output=RUN
  python -m blt_jax.convert --from=llama --path=FOLDER --output=RUN
  python -m blt_jax.convert --run=RUN --to=hf --output=FOLDER

It prints every array, with its shape and what it is made of. The entropy model of a BLT
becomes a run in the folder entropy_model of the new run.
"""

import argparse

from absl import logging

from blt_jax import convert
from blt_jax.cli import logs
from blt_jax.cli.parsing import Parser
from blt_jax.runs import converted

_PLANS = {
  "hf": convert.plan_hf,
  "meta": convert.plan_meta,
  "llama": lambda path: convert.Planned(convert.plan_llama(path)),
}


def main(argv: list[str] | None = None) -> None:
  """Converts, one way or the other."""
  parser = Parser("convert", __doc__)
  args = _parse(parser, argv)
  logs.show_progress()
  if args.run:
    converted.write_hf(args.run, args.output)
    return
  planned = _PLANS[args.source](args.path)
  converted.write_run(args.output, planned)
  for plan in filter(None, (planned.model, planned.entropy)):
    for line in plan.lines():
      print(line)
  logging.info("The weights of %s are a run in %s.", args.path, args.output)


def _parse(parser: Parser, argv: list[str] | None) -> argparse.Namespace:
  add = parser.add_argument
  add("--from", dest="source", choices=_PLANS, help="whose layout --path has")
  add("--path", metavar="FOLDER", help="of config.json and weights")
  add("--run", metavar="FOLDER", help="of the run to convert to the layout --to")
  add("--to", choices=("hf",), help="Hugging Face's BltForCausalLM")
  add("--output", required=True, metavar="FOLDER", help="folder to make")
  args = parser.parse_args(argv)
  is_import, is_export = bool(args.source and args.path), bool(args.run and args.to)
  is_mixed = (args.source or args.path) and (args.run or args.to)
  if is_mixed or not (is_import or is_export):
    parser.error("give either --from and --path, or --run and --to.")
  return args


if __name__ == "__main__":
  logs.run(main)
