"""Trains a BLT, or a language model over bytes or pieces.

  python -m blt_jax.train --config=configs/quickstart.py
  python -m blt_jax.train --config=configs/quickstart.py:entropy --config.num_steps=100

The same command continues a run that was stopped. On several hosts it runs on each of them;
see `distributed.start`. SIGTERM saves a checkpoint at the next step and ends with status 0,
Ctrl-C with 130; a second one ends at once. While one trains in a folder, others refuse, with
status 75.
"""

import contextlib

from absl import logging
from ml_collections import ConfigDict

from blt_jax import config as settings
from blt_jax.cli import logs
from blt_jax.cli.parsing import Parser
from blt_jax.evals import in_rows
from blt_jax.parallel import distributed
from blt_jax.runs import (
  bounds,
  folder,
  init_from,
  metrics,
  ngrams,
  profiling,
  resolve,
  settings_flags,
  tokenizers,
  unread,
)
from blt_jax.runs import lock as locks
from blt_jax.runs.checkpoint import Checkpoints
from blt_jax.runs.document_counter import DocumentCounter
from blt_jax.runs.evaluation import Evaluator
from blt_jax.runs.feed import Feed
from blt_jax.runs.log import make_run_log
from blt_jax.runs.program import make_program
from blt_jax.runs.stopwatch import Stopwatch
from blt_jax.storage.folders import Folder


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
  """Trains as `config` says; returns the held-out numbers of the end, None if preempted."""
  distributed.check_same(folder.to_plain(config))
  bounds.check(config)
  for sentence in unread.find(config):
    logging.warning("%s", sentence)
  with distributed.failing_together():
    # --- Settings: what they leave open is decided once
    config = resolve.resolve(config)

    # --- Mesh and model
    program = make_program(config)
    mesh, model = program.mesh, program.model
    start = init_from.plan(config, program)

    # --- Data: worker processes patch documents, threads pack and place batches ahead
    tasks = in_rows.prepare(config.eval.tasks, config.eval.task_data, config.eval.task_limit)
    feed = Feed(config, mesh)

  with contextlib.ExitStack() as opened:
    # --- The run's folder, for this trainer alone
    lock = opened.enter_context(locks.hold(config.workdir))
    folder.share_config(config.workdir, config)
    tokenizers.keep(config)
    ngrams.keep(config)
    checkpoints = Checkpoints(config.workdir, config, **settings.kept_checkpoints(config))
    opened.callback(checkpoints.close)

    # --- State: continue from the run's newest checkpoint that can be read, else start
    step, state, extra = init_from.find_state(start, program, checkpoints)
    opened.callback(feed.close)
    batches = feed.training_batches(step, extra.get("data"))
    stopwatch = Stopwatch(**extra.get("time", {}))
    log = make_run_log(config, model, mesh, program.learning_rate, stopwatch, feed.calibration)
    opened.callback(log.close)
    log.start(step, state.params)

    # --- Compiled functions
    traces = Folder(config.workdir).path_of("profile")
    train_step = profiling.Profiled(program.train_step(), traces, **config.profile)
    count_documents = DocumentCounter(mesh, config.data.num_streams)
    evaluate = Evaluator(model, feed.heldout_batches(), mesh, config.eval.max_batches)
    ask_tasks = in_rows.TasksInRows(tasks, feed, model, mesh)

    # --- Loop: nothing waits for the device but the reports and what follows them
    def evaluate_now() -> metrics.Numbers:
      log.flush()
      with stopwatch.paused("eval"):
        numbers = evaluate(state.params, state.extra)
        numbers |= ask_tasks(step, state.params, state.extra)
      log.evaluation(step, numbers)
      return numbers

    def save(bpb: float | None = None, lacks_evaluation: bool = False) -> None:
      log.flush()  # raises if a loss was bad; and a run continued from here has no hole in it
      with stopwatch.paused("checkpoint"):
        places = {"data": feed.state(), "time": stopwatch.state}
        checkpoints.save(step, state, places | {"lacks_evaluation": lacks_evaluation}, bpb)

    opened.enter_context(distributed.saving_on_interrupt())
    if extra.get("lacks_evaluation") and step < config.num_steps:
      evaluate_now()
    while step < config.num_steps:
      with stopwatch.waiting():
        batch = next(batches)
      step += 1
      documents = count_documents(batch)
      state, step_metrics = train_step(step, state, batch)
      log.add(step, step_metrics | documents, batch)
      checkpoints.check()
      lock.check()
      if distributed.preempted(step):
        save(lacks_evaluation=step % config.eval.every_steps == 0)
        checkpoints.wait()
        logging.info("Preempted at step %d", step)
        return None
      if step == config.num_steps:
        break
      bpb = evaluate_now()["bpb"] if step % config.eval.every_steps == 0 else None
      if step % config.checkpoint.every_steps == 0:
        save(bpb)
    numbers = evaluate_now()
    save(numbers["bpb"])
  return numbers


if __name__ == "__main__":
  logs.run(main)
