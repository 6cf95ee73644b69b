"""The training loop of a run: from settings to the held-out numbers of its end."""

import contextlib
from collections.abc import Callable
from typing import Any, TypeAlias

import flax.linen as nn
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from blt_jax import config as settings
from blt_jax.parallel import distributed
from blt_jax.runs import (
  bounds,
  folder,
  init_from,
  metrics,
  ngrams,
  profiling,
  resolve,
  tokenizers,
  unread,
)
from blt_jax.runs import lock as locks
from blt_jax.runs.checkpoint import Checkpoints
from blt_jax.runs.document_counter import DocumentCounter
from blt_jax.runs.evaluation import Evaluator
from blt_jax.runs.feed import Feed
from blt_jax.runs.log import make_run_log
from blt_jax.runs.program import Programs, make_program
from blt_jax.runs.stopwatch import Stopwatch
from blt_jax.storage.folders import Folder

# Of a step, its parameters and scalars: numbers of tasks. It is made of a run's rows, model and
# mesh.
AskTasks: TypeAlias = Callable[[int, Any, Any], metrics.Numbers]
MakeTasks: TypeAlias = Callable[[Feed, nn.Module, Mesh], AskTasks]


def no_tasks() -> MakeTasks:
  """For a run that is measured by held-out text alone."""
  return lambda feed, model, mesh: lambda step, params, scalars: {}


def train(
  config: ConfigDict,
  prepare_tasks: Callable[[], MakeTasks] = no_tasks,
  programs: Programs | None = None,
) -> metrics.Numbers | None:
  """Trains, or goes on with what was stopped.

  Args:
    config: the whole settings.
    prepare_tasks: reads what else is asked at evaluations; called before anything is written.
    programs: of the runs before, to share what is compiled with them.

  Returns:
    The held-out numbers of the end; None if preempted.

  Raises:
    ValueError: settings that do not go together, or bad input.
    FloatingPointError: as `LossGuard.check`.
  """
  distributed.check_same(folder.to_plain(config))
  bounds.check(config)
  for sentence in unread.find(config):
    logging.warning("%s", sentence)
  with distributed.failing_together():
    # --- Settings: what they leave open is decided once
    config = resolve.resolve(config)

    # --- Mesh and model
    program = (programs or make_program)(config)
    mesh, model = program.mesh, program.model
    start = init_from.plan(config, program)

    # --- Data: worker processes patch documents, threads pack and place batches ahead
    make_tasks = prepare_tasks()
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
    evaluate = Evaluator(program.sums, feed.heldout_batches(), mesh, config.eval.max_batches)
    ask_tasks = make_tasks(feed, model, mesh)

    # --- Loop: nothing waits for the device but the reports and what follows them
    def evaluate_now() -> metrics.Numbers:
      log.flush()
      with stopwatch.paused("eval"):
        numbers = evaluate(state.params, state.extra)
        numbers |= ask_tasks(step, state.params, state.extra | program.named)
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
