"""Runs lm-evaluation-harness on a run, with its tasks as they are or over local files.

  python -m blt_jax.lm_eval --model=blt_jax --model_args=run=RUN --tasks=wikitext
  python -m blt_jax.lm_eval --data=FOLDER --model=blt_jax --model_args=run=RUN --tasks=blt_piqa

All options but `--data` are the harness's. With it there are tasks `blt_NAME`, which are the
harness's own over the files of `blt_jax.evaluate --tasks`, and nothing comes from a network.
"""

import argparse
import importlib
import os
import pathlib
import sys
import tempfile

from blt_jax.cli import logs


def main(argv: list[str] | None = None) -> None:
  """Hands the command line to the harness."""
  parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
  parser.add_argument("--data")
  args, others = parser.parse_known_args(argv)
  if args.data is not None:
    os.environ |= {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}  # before it is imported
  try:
    import lm_eval.__main__
  except ImportError as error:
    raise ValueError(f"{error}: pip install blt_jax[eval]") from error
  importlib.import_module("blt_jax.evals.harness")  # registers the model
  from blt_jax.evals import harness_tasks

  with tempfile.TemporaryDirectory() as folder:
    if args.data is not None:
      names = harness_tasks.write(args.data, pathlib.Path(folder))
      print(f"Tasks of {args.data}: {', '.join(names)}", file=sys.stderr)
      others.append(f"--include_path={folder}")
    sys.argv = ["lm_eval", *others]
    lm_eval.__main__.cli_evaluate()


if __name__ == "__main__":
  logs.run(main)
