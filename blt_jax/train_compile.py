"""Compiles the train step, for a TPU slice or the GPUs of this machine, and says if it fits.

  python -m blt_jax.train_compile --config=configs/tpu_v4.py --topology=v4-128
  python -m blt_jax.train_compile --config=configs/tpu_v4.py:8b --topology=v4-256 --slices=2
  python -m blt_jax.train_compile --config=configs/gpu_24gb.py

A slice needs libtpu (`pip install 'blt_jax[tpu]'`) and minutes, but no TPU; then it also says
what a step takes at least. Exit status 1: it does not fit.
"""

import argparse
import contextlib
import math
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from blt_jax import config as settings
from blt_jax import kinds
from blt_jax.cli import logs
from blt_jax.cli.parsing import Parser
from blt_jax.cost import hlo, kernels, report, topologies, work
from blt_jax.runs import advice, program, settings_flags
from blt_jax.storage import atomic

_HEARTBEAT = 30  # seconds between signs of life


def main(argv: list[str] | None = None) -> str | None:
  """Reads the settings, compiles and reports; returns why the step does not fit."""
  args, config = _parse(argv)
  logs.show_progress()
  jax.config.update("jax_enable_compilation_cache", False)  # what is kept tells less of itself
  if args.slices is not None:
    config.mesh.slices = args.slices
  try:
    result = _compile(config, args.topology)
  except advice.OutOfMemoryError as error:
    return f"error: {error}"
  print(report.to_text(result))
  if args.json:
    atomic.write_json(args.json, result.to_dict())
  return None


def _parse(argv: list[str] | None) -> tuple[argparse.Namespace, ConfigDict]:
  parser = Parser("train_compile", __doc__)
  parser.add_argument(
    "--topology",
    help="slice, such as v4-128 or v6e:8x8 (see docs/tpu.md); by default the GPUs here",
  )
  parser.add_argument("--slices", type=int, help="how many; by default config.mesh.slices")
  parser.add_argument("--json", metavar="FILE", help="write the numbers there too")
  return settings_flags.parse(parser, argv)


def _compile(config: ConfigDict, name: str | None) -> report.Fit:
  if name is None:
    return fit_step(config, topologies.local_gpus())[0]
  jax.config.update("jax_platforms", "cpu")  # a TPU at hand is not for this
  return compile_step(config, topologies.get_topology(name, config.mesh.slices))


def compile_step(config: ConfigDict, topology: topologies.Topology) -> report.Report:
  """Compiles the step that `config` trains with, for a TPU slice, and adds up what it does.

  Args:
    config: the whole settings.
    topology: the chips.

  Raises:
    ValueError: the settings do not fit each other or the topology.
    OutOfMemoryError: a chip's memory is too small; says what to change.
  """
  fit, traced, compiled, mesh = fit_step(config, topology)
  module = hlo.parse(compiled.as_text())
  done = work.measure(module, kernels.kernel_flops(traced), mesh, topology.chip)
  return report.Report(**vars(fit), flops=_flops(config, done, mesh.size), work=done)


def fit_step(
  config: ConfigDict, topology: topologies.Topology
) -> tuple[report.Fit, jax.stages.Traced, Any, jax.sharding.Mesh]:
  """Compiles the step that `config` trains with, and says what memory it takes.

  Args and errors are those of `compile_step`; the topology may be of GPUs.

  Returns:
    That it fits, the step as it was traced and as it was compiled, and its mesh.
  """
  step_program = program.make_program(config, topology.devices)
  batch = program.abstract_batch(config, step_program.mesh)
  start = time.monotonic()
  logging.info("Tracing the step for %d x %s", len(topology.devices), topology.chip.device_kind)
  traced = step_program.trace(batch)
  lowered = traced.lower()
  with _signs_of_life("Compiling"):
    try:
      compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
      raise advice.explain(error, config, step_program.mesh) from error
  seconds = time.monotonic() - start
  logging.info("Compiled in %.0f s", seconds)
  mesh, chip = step_program.mesh, topology.chip
  memory = _memory(step_program.abstract_state, batch, compiled.memory_analysis(), chip)
  if memory.peak > memory.limit:  # the compiler itself looks at temporary memory alone
    what = f"{memory.peak / 1e9:.1f} of {memory.limit / 1e9:.1f} GB per chip."
    raise advice.too_large(what, config, mesh)
  fit = report.Fit(_step(config, topology, step_program), chip, memory, seconds)
  return fit, traced, compiled, mesh


@contextlib.contextmanager
def _signs_of_life(what: str) -> Iterator[None]:
  """Says every half minute that something goes on."""
  start, over = time.monotonic(), threading.Event()

  def speak():
    logging.info("%s (minutes for large models)", what)
    while not over.wait(_HEARTBEAT):
      logging.info("%s, %.0f s so far", what, time.monotonic() - start)

  speaker = threading.Thread(target=speak, daemon=True)
  speaker.start()
  try:
    yield
  finally:
    over.set()
    speaker.join()


def _step(config, topology, step_program):
  shape = settings.make_batch_shape(config)
  return report.Step(
    topology=topology.name,
    num_slices=topology.num_slices,
    mesh=dict(step_program.mesh.shape),
    num_parameters=sum(x.size for x in jax.tree.leaves(step_program.abstract_state.params)),
    batch_size=shape.batch_size,
    seq_len=shape.seq_len,
    num_patches=shape.num_patches,
    accumulate=config.optimizer.accumulate,
    unit="pieces" if kinds.find_kind(config.model.kind).reads_pieces else "bytes",
  )


def _memory(state, batch, analysis, chip):
  return report.Memory(
    parameters=bytes_per_chip(state.params),
    optimizer=bytes_per_chip(state.opt_state),
    batch=bytes_per_chip(batch),
    temporary=analysis.temp_size_in_bytes,
    peak=_peak(analysis, chip),
    limit=chip.hbm_bytes,
  )


def _peak(analysis, chip):
  if chip.device_kind.startswith("TPU"):
    return analysis.peak_memory_in_bytes
  kept = analysis.argument_size_in_bytes + analysis.output_size_in_bytes
  return kept - analysis.alias_size_in_bytes + analysis.temp_size_in_bytes


def bytes_per_chip(tree: Any) -> int:
  """Bytes of a chip's shards of a tree of shapes."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
  )


def _flops(config, done, num_chips):
  shape = settings.make_batch_shape(config)
  model = settings.make_model_config(config.model)
  num_patches = getattr(model, "num_patches", None) or shape.num_patches  # own or given ones
  patch_size = max(shape.seq_len / num_patches, 1.0)
  paper = kinds.flops_per_byte(model, patch_size, shape.seq_len)
  row = kinds.model_flops(model, shape.seq_len, shape.num_patches)
  return report.Flops(
    products=done.product_flops,
    kernels=done.kernel_flops,
    recomputed=done.recomputed_flops,
    model=row * shape.batch_size / num_chips,
    paper=3 * paper * shape.batch_size * shape.seq_len / num_chips,
  )


if __name__ == "__main__":
  logs.run(main)
