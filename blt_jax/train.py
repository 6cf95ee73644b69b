"""Trains a BLT, or a language model over bytes or pieces.

  python -m blt_jax.train --config=configs/quickstart.py
  python -m blt_jax.train --config=configs/quickstart.py:entropy --config.num_steps=100

The same command continues a run that was stopped. On several hosts it runs on each of them;
see `distributed.start`. SIGTERM saves a checkpoint at the next step and ends with status 0,
Ctrl-C with 130; a second one ends at once. While one trains in a folder, others refuse, with
status 75.
"""

import functools

from ml_collections import ConfigDict

from blt_jax.cli import logs
from blt_jax.cli.parsing import Parser
from blt_jax.evals import in_rows
from blt_jax.parallel import distributed
from blt_jax.runs import loop, metrics, settings_flags


def main(argv: list[str] | None = None) -> int | None:
  """Reads the settings and trains.

  Returns:
    The exit status: 130 after Ctrl-C.
  """
  _, config = settings_flags.parse(Parser("train", __doc__), argv)
  logs.show_progress()
  distributed.start()
  with distributed.ending_together():
    train(config)
  return distributed.exit_status()


def train(config: ConfigDict) -> metrics.Numbers | None:
  """As `loop.train`, with the tasks of `config.eval`."""

  def prepare_tasks() -> loop.MakeTasks:
    asked = config.eval
    tasks = in_rows.prepare(asked.tasks, asked.task_data, asked.task_limit)
    return functools.partial(in_rows.TasksInRows, tasks)

  return loop.train(config, prepare_tasks)


if __name__ == "__main__":
  logs.run(main)
