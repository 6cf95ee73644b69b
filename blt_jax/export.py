"""The weights of a run without what only training needs.

python -m blt_jax.export --run=runs/mine/blt --output=FOLDER

The folder is a run to all programs but `train`. Large models want JAX_PLATFORMS=cpu.
"""

import argparse

from absl import logging
from etils import epath

from blt_jax.cli import logs
from blt_jax.runs import checkpoint, folder, patcher


def main(argv: list[str] | None = None) -> None:
  """Writes the folder."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--run", required=True, help="folder of the run")
  parser.add_argument("--output", required=True, help="folder to make")
  args = parser.parse_args(argv)
  logs.show_progress()
  export(args.run, args.output)


def export(workdir: str, output: str) -> None:
  """Exports the newest checkpoint of a run.

  Raises:
    FileNotFoundError: there is no run, or no checkpoint.
    ValueError: the output exists.
  """
  source, target = epath.Path(workdir), epath.Path(output)
  if target.exists():
    raise ValueError(f"--output={output} exists; name a new folder, or remove it.")
  step, run = checkpoint.find_step(source), folder.load_run(source)
  checkpoint.save_params(target, step, run.params)
  threshold = source / patcher.THRESHOLD_FILE
  if threshold.exists():
    threshold.copy(target / patcher.THRESHOLD_FILE)
  folder.save_config(target, run.config)  # last: without it the folder is no run
  logging.info("The weights of %s at step %d are in %s.", workdir, step, output)


if __name__ == "__main__":
  logs.run(main)
