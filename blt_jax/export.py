"""The weights of a run without what only training needs.

python -m blt_jax.export --run=runs/mine/blt --output=FOLDER

The folder is a run to all programs but `train`. Large models want JAX_PLATFORMS=cpu.
"""

import argparse

from absl import logging

from blt_jax.cli import logs
from blt_jax.runs import checkpoint, folder, patcher
from blt_jax.storage import paths
from blt_jax.storage.folders import Folder


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
  if paths.exists(output):
    raise ValueError(f"--output={output} exists; name a new folder, or remove it.")
  step, run = checkpoint.find_step(workdir), folder.load_run(workdir)
  checkpoint.save_params(output, step, run.params)
  source, name = Folder(workdir), patcher.THRESHOLD_FILE
  if source.exists(name):
    Folder(output).write_json(name, source.read_json(name))
  folder.save_config(output, run.config)  # last: without it the folder is no run
  logging.info("The weights of %s at step %d are in %s.", workdir, step, output)


if __name__ == "__main__":
  logs.run(main)
