"""Trains a BLT or a byte language model.

  python -m blt_jax.train --config=configs/quickstart.py
  python -m blt_jax.train --config=configs/quickstart.py:entropy --config.num_steps=100

The same command continues a run that was stopped.
"""

import functools
import pathlib
import time

import jax
from absl import app, logging
from ml_collections import ConfigDict, config_flags

from blt_jax import (
  checkpoint,
  corpus,
  logs,
  metrics,
  patchers,
  runs,
  sharding,
  steps,
  train_state,
)
from blt_jax import config as settings
from blt_jax.data import pipeline
from blt_jax.evaluation import Evaluator

_CONFIG = config_flags.DEFINE_config_file("config", help_string="File with the settings.")


def main(argv: list[str]) -> None:
  """Reads the flags and trains."""
  del argv
  logs.show_progress()
  if _CONFIG.value is None:
    raise app.UsageError("Give the settings: --config=configs/quickstart.py")
  train(_CONFIG.value)


def train(config: ConfigDict) -> metrics.Numbers:
  """Trains as `config` says; returns the held-out numbers of the end."""
  # --- Mesh and model
  mesh = sharding.make_mesh(**config.mesh)
  shape = settings.make_batch_shape(config)
  sharding.check_batch_size(shape.batch_size, config.optimizer.accumulate, mesh)
  model = train_state.build_model(settings.make_model_config(config.model))
  optimizer, learning_rate = settings.make_optimizer(config)

  # --- Data: worker processes patch documents, threads pack and place batches ahead
  patcher = patchers.load_patcher(config.patching, corpus.stored_manifests(config.data))
  patch = patcher.documents()
  documents = corpus.open_corpus(config.data, config.seed)
  batches = pipeline.prefetch(
    pipeline.training_batches(documents.train, patch, shape, config.data.num_workers),
    functools.partial(sharding.put_batch, mesh=mesh),
  )
  heldout = pipeline.evaluation_batches(documents.heldout, patch, shape)

  # --- The run's folder; a threshold found by calibration becomes one of its settings
  workdir = pathlib.Path(config.workdir)
  if patcher.config.scheme == "entropy":
    config.patching.threshold = patcher.config.threshold
  runs.save_config(workdir, config)
  checkpoints = checkpoint.Checkpoints(workdir, config.checkpoint.keep)
  writer = metrics.MetricWriter(workdir, config.logging.tensorboard)

  # --- State: continue from the run's newest checkpoint, else start
  param_dtype = config.optimizer.param_dtype
  if checkpoints.latest_step is not None:
    abstract = train_state.abstract_state(model, optimizer, mesh, param_dtype)
    state = checkpoints.restore(abstract, batches)
    logging.info("Continuing %s at step %d of %d.", workdir, state.step, config.num_steps)
  else:
    state = train_state.create_state(model, optimizer, config.seed, mesh, param_dtype)
  num_params = sum(x.size for x in jax.tree.leaves(state.params))
  logging.info("%s parameters, %d devices.", f"{num_params:,}", mesh.size)

  # --- Compiled functions
  train_step = sharding.jit(
    steps.make_train_step(model, optimizer, config.optimizer.accumulate),
    mesh,
    donate_argnames="state",
  )
  evaluate = Evaluator(model, heldout, mesh, config.eval.max_batches)

  # --- Loop: nothing waits for the device but the reports and what follows them
  def report(step: int, numbers: metrics.Numbers | None) -> None:
    if numbers is None:
      return
    numbers["learning_rate"] = float(learning_rate(step - 1))
    writer.write(step, "train", numbers)
    logging.info(metrics.progress_line(step, config.num_steps, numbers))

  def evaluate_now(step: int) -> metrics.Numbers:
    report(step, meter.flush())
    numbers = evaluate(state.params)
    writer.write(step, "eval", numbers)
    logging.info("Held-out bits per byte at step %d: %.4f", step, numbers["bpb"])
    meter.restart_clock()
    return numbers

  meter = metrics.Meter(config.logging.every_steps)
  try:
    for step in range(int(state.step) + 1, config.num_steps + 1):
      waiting_since = time.monotonic()
      batch = next(batches)
      waited = time.monotonic() - waiting_since
      state, step_metrics = train_step(state, batch)
      report(step - 1, meter.add(step_metrics, waited))
      if step == config.num_steps:
        break
      if step % config.checkpoint.every_steps == 0:
        report(step, meter.flush())  # a run continued from here has no hole in its log
        checkpoints.save(state, batches)
      if step % config.eval.every_steps == 0:
        evaluate_now(step)
    numbers = evaluate_now(int(state.step))
    checkpoints.save(state, batches)
  finally:  # whatever happened, what is being written gets written
    batches.close()
    checkpoints.close()
    writer.close()
  return numbers


if __name__ == "__main__":
  app.run(main)
