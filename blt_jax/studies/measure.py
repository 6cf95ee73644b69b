"""What an arm is like on its text and this machine: patches, FLOPs, seconds of a step."""

import dataclasses
import itertools
import operator
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from blt_jax import kinds
from blt_jax.runs import corpus, lock, resolve, settings_flags
from blt_jax.runs.evaluation import Evaluator
from blt_jax.runs.feed import Feed
from blt_jax.runs.program import Program, make_program
from blt_jax.studies import cost, made
from blt_jax.studies.plan import flags
from blt_jax.studies.study import Measured, Study, plan_run
from blt_jax.studies.sweep import Run

_SAMPLE_BYTES = 1 << 17  # of training text, whose patches are counted
_STEPS = 8  # that are timed
_POLL = 2.0  # seconds between looks at what other processes measure


class TextSize(NamedTuple):
  """Bytes of text."""

  train: int
  heldout: int


def text_size(study: Study) -> TextSize:
  """The size of the text of a study, read once."""
  name = "text.json"
  if not study.home.exists(name):
    opened = corpus.open_corpus(next(iter(study.configs.values())).data)
    train = sum(_size(d) for source, _ in opened.once(0) for d in source)
    heldout = sum(_size(d) for d in opened.test_documents())
    study.home.write_json(name, {"train": train, "heldout": heldout})
  return TextSize(**study.home.read_json(name))


def _size(document: Any) -> int:
  return len(document.text) if document is not None else 0


def measure_all(study: Study) -> tuple[dict[str, Measured], list[str]]:
  """Measures all of `Study.active_configs`; what another process measures is left to it.

  Returns:
    Name of an arm -> numbers, and the names of those that were measured with patches of one
    size, since their entropies are still to be made. These are not kept.
  """
  found, stood_in, awaited = {}, [], set()
  size, left = text_size(study), list(study.active_configs)
  while left:
    name = left.pop(0)
    kept = study.find_measured(name)
    if kept is None:
      try:
        with lock.hold(study.home.path_of(f"claims/measured/{name}")):
          kept, is_stand_in = _measure_arm(study, name, size)
      except lock.InUseError:
        if name not in awaited:
          logging.info("Another process measures %s.", name)
        awaited.add(name)
        left.append(name)
        time.sleep(_POLL)
        continue
      if is_stand_in:
        stood_in.append(name)
    found[name] = kept
  return {name: found[name] for name in study.active_configs}, stood_in


def _measure_arm(study: Study, name: str, size: TextSize) -> tuple[Measured, bool]:
  """What an arm is like, and whether others stand in for its patches."""
  kept = study.find_measured(name)
  if kept is not None:  # by now
    return kept, False
  logging.info("Measuring %s.", name)
  is_stand_in = made.lacks_entropies(study.plan.arms[name], study.configs[name], study.made)
  config = _stand_in(study, name) if is_stand_in else study.ready_config(name)
  measured = measure(study, name, config, size.heldout)
  if is_stand_in:
    return _with_source(study, name, measured), True
  study.keep_measured(name, measured)
  return measured, False


def _stand_in(study: Study, name: str) -> ConfigDict:
  """Settings with patches of the size that the arm's are calibrated for."""
  config = study.configs[name].copy_and_resolve_references()
  size = study.plan.arms[name].bytes_per_patch
  config.patching.update(scheme="static", patch_size=size, entropy_model="")
  sizes = config.model.get("patch_sizes", ())
  steps = (max(round(coarse / fine), 2) for fine, coarse in itertools.pairwise(sizes))
  multiples = itertools.accumulate(steps, operator.mul)
  config.patching.coarser = tuple(size * multiple for multiple in multiples)
  if "entropy_state_dim" in config.model:
    config.model.entropy_state_dim = 0  # of a model that is not there
  return config


def _with_source(study: Study, name: str, measured: Measured) -> Measured:
  source = study.plan.entropies[study.plan.arms[name].entropies]
  if source.is_table:
    return measured
  model = settings_flags.load(source.config, flags(source.settings))
  return dataclasses.replace(measured, cost=cost.with_entropy_model(measured.cost, model))


def measure(study: Study, name: str, config: ConfigDict, heldout_bytes: int) -> Measured:
  """Counts the patches of some batches, then takes the time of some steps.

  Args:
    study: whose arm.
    name: of the arm.
    config: its settings.
    heldout_bytes: of the text that runs are evaluated on.
  """
  config.workdir = study.home.path_of(f"measured/{name}")  # where nothing is written
  config = ConfigDict(resolve.resolve(config))
  program = make_program(config)
  feed = Feed(config, program.mesh)
  try:
    batches = feed.training_batches()
    row_bytes = config.data.batch_size * config.data.seq_len
    sample = list(itertools.islice(batches, max(4, _SAMPLE_BYTES // row_bytes)))
    state = program.create_state()
    evaluate = Evaluator(program.sums, map(_to_host, sample), program.mesh)
    numbers = evaluate(state.params)
    size = patch_size(config, numbers["patch_size"])
    found = Measured(
      parameters=sum(x.size for x in jax.tree.leaves(state.params)),
      patch_size=size,
      bytes_per_step=bytes_of(config, numbers) / len(sample),
      cost=cost.of_run(config, size),
      step_seconds=0.0,
      evaluation_seconds=0.0,
      compile_seconds=0.0,
    )
    run = Run(name, study.plan.budgets_of(name)[0], study.plan.rates[0], 0)
    own = plan_run(config, study.plan, run, found, config.workdir)
    first, seconds = _time(make_program(own), state, batches)
  finally:
    feed.close()
  forward = seconds / 3 / found.bytes_per_step  # a step is three times as much
  return dataclasses.replace(
    found,
    step_seconds=seconds,
    evaluation_seconds=forward * heldout_bytes,
    compile_seconds=first,
  )


def patch_size(config: ConfigDict, found: float) -> float:
  """Bytes per patch of a run: as found, unless its model still has to learn where they end."""
  return config.model.patch_size if _learns_patches(config) else found


def bytes_of(config: ConfigDict, numbers: Mapping[str, float]) -> float:
  """Bytes that a run learns from, of some that an untrained model was evaluated on.

  They are as found, unless the model still has to learn where patches end: until then it
  leaves out those for which its short patches leave no slots.
  """
  dropped = numbers.get("dropped_targets", 0.0) if _learns_patches(config) else 0.0
  return numbers["bytes"] / (1 - dropped)


def _learns_patches(config: ConfigDict) -> bool:
  return kinds.find_kind(config.model.kind).measures_entropies


def _to_host(batch: Any) -> dict[str, np.ndarray]:
  return jax.device_get(batch)


def _time(program: Program, state: Any, batches: Iterator[Any]) -> tuple[float, float]:
  """Seconds of the first step, which compiles, and of one of those after it."""
  step = program.train_step()

  def timed() -> float:
    nonlocal state
    since = time.monotonic()
    state, numbers = step(state, next(batches))
    jax.block_until_ready(numbers)
    return time.monotonic() - since

  return timed(), float(np.median([timed() for _ in range(_STEPS)]))
