"""The weights of a run without what only training needs.

  python -m blt_jax.export --run=runs/mine/blt --output=FOLDER
  python -m blt_jax.export --run=runs/mine/blt --output=FOLDER --step=best

The folder is a run to all programs but `train`. Large models want JAX_PLATFORMS=cpu.
"""

from absl import logging

from blt_jax.cli import logs, run_flags
from blt_jax.cli.parsing import Parser
from blt_jax.runs import checkpoint, folder, ngrams, patcher, stored_params, tokenizers
from blt_jax.storage import atomic
from blt_jax.storage.folders import Folder


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
  folder.check_new(output)
  run = folder.load_run(workdir, step)
  source, name = Folder(workdir), patcher.THRESHOLD_FILE
  with atomic.new_folder(output) as target:
    stored_params.save(target, run.step, run.params, run.config)
    if source.exists(name):
      Folder(target).write_json(name, source.read_json(name))
    if source.exists(folder.TOKENIZER):
      tokenizers.copy_to(target, source.path_of(folder.TOKENIZER))
    ngrams.copy_to(target, workdir)
    folder.save_config(target, run.config, output)  # last: without it the folder is no run
  logging.info("The weights of %s at step %d are in %s.", workdir, run.step, output)


if __name__ == "__main__":
  logs.run(main)
