"""The weights of a run without what only training needs.

  python -m blt_jax.export --run=runs/mine/blt --output=FOLDER
  python -m blt_jax.export --run=runs/mine/blt --output=FOLDER --step=best

The folder is a run to all programs but `train`. Large models want JAX_PLATFORMS=cpu.
"""

from absl import logging
from etils import epath

from blt_jax.cli import logs, run_flags
from blt_jax.cli.parsing import Parser
from blt_jax.runs import checkpoint, folder, patcher


def main(argv: list[str] | None = None) -> None:
  """Writes the folder."""
  parser = Parser("export", __doc__)
  run_flags.add(parser)
  parser.add_argument("--output", required=True, metavar="FOLDER", help="folder to make")
  args = parser.parse_args(argv)
  logs.show_progress()
  export(args.run, args.output, args.step)


def export(workdir: str, output: str, step: checkpoint.Step = None) -> None:
  """Exports a checkpoint of a run.

  Args:
    workdir: the run's folder.
    output: folder to make.
    step: as for `checkpoint.find_step`.

  Raises:
    FileNotFoundError: there is no run, or no such checkpoint.
    ValueError: the output exists.
  """
  source, target = epath.Path(workdir), epath.Path(output)
  if target.exists():
    raise ValueError(f"--output={output} exists; name a new folder, or remove it.")
  run = folder.load_run(source, step)
  checkpoint.save_params(target, run.step, run.params)
  threshold = source / patcher.THRESHOLD_FILE
  if threshold.exists():
    threshold.copy(target / patcher.THRESHOLD_FILE)
  folder.save_config(target, run.config)  # last: without it the folder is no run
  logging.info("The weights of %s at step %d are in %s.", workdir, run.step, output)


if __name__ == "__main__":
  logs.run(main)
