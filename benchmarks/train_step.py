r"""Speed of a training step, as a whole and by part, and how far it is from the limit.

  python benchmarks/train_step.py                          # a small model: a minute on a CPU
  python benchmarks/train_step.py --config=configs/gpu_h200.py:1b --num_patches=984 \
    --document_bytes=700 --param_dtype=bfloat16
  python benchmarks/train_step.py --peers                  # and PyTorch's, in turn
  python benchmarks/train_step.py --config=configs/gpu_h200.py:1b --passes=step --rows=16 \
    --set=mesh.fsdp=2                                      # the whole step on two GPUs

Bytes are random; every patch slot is used. Bytes per second count byte slots. FLOPs are
those of `cost.flops.*_model_flops`, what the step must do at its real sizes, not those that
papers charge. The limit is arithmetic alone: these FLOPs at the speed of one large product,
measured here; for the whole step, the optimizer's traffic at the speed of a copy comes on
top. Parts are timed alone at the step's sizes; what their sum leaves of the step is "rest":
norms, rotations, activations, loss, copies. Memory is what the compiler plans.
"""

import argparse
import ast
import json
import os
import pathlib
import runpy
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import step_parts
import step_peers
import step_table
import stopwatch
from ml_collections import ConfigDict

from blt_jax import kinds, tokenizer
from blt_jax.cost import chips
from blt_jax.models import init
from blt_jax.models.config import BLTConfig
from blt_jax.parallel import sharding
from blt_jax.runs import program as programs
from blt_jax.training import steps

Result = dict[str, Any]
PASSES = ("forward", "forward_backward", "step")


def main() -> None:
  """Measures and prints."""
  arguments = _parse()
  config = load_config(arguments)
  if arguments.peers:  # PyTorch needs memory as well
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  jax.config.update("jax_enable_compilation_cache", False)  # compile times are measured
  wanted = arguments.passes.split(",") if arguments.passes else PASSES
  unknown = [name for name in wanted if name not in PASSES]
  if unknown:
    raise ValueError(f"--passes={unknown[0]} is none of {','.join(PASSES)}.")
  if arguments.peers and arguments.passes:
    raise ValueError("--peers runs forward and forward + backward; leave --passes out.")
  result = measure(config, arguments.document_bytes, arguments.peers, wanted)
  print(step_table.to_text(result))
  if arguments.json:
    pathlib.Path(arguments.json).write_text(json.dumps(result, indent=2))


def _parse() -> argparse.Namespace:
  formatter = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
  parser.add_argument("--config", default="configs/quickstart.py", help="FILE or FILE:SIZE")
  parser.add_argument("--rows", type=int, help="B, rows in a batch")
  parser.add_argument("--seq_len", type=int, help="S, bytes in a row")
  parser.add_argument("--num_patches", type=int, help="P, patches in a row")
  parser.add_argument("--document_bytes", type=int, default=700, help="mean; 0: none ends")
  parser.add_argument("--param_dtype", choices=("float32", "bfloat16"))
  parser.add_argument(
    "--set", action="append", default=[], metavar="NAME=VALUE",
    help="any other setting, as --set model.latent.remat=dots; may be given again",
  )  # fmt: skip
  parser.add_argument("--peers", action="store_true", help="also run PyTorch's BLTs")
  parser.add_argument(
    "--passes", metavar="NAME,...", help=f"only these of {','.join(PASSES)}, and no parts"
  )
  parser.add_argument("--json", help="also write the numbers to this file")
  return parser.parse_args()


def load_config(arguments: argparse.Namespace) -> ConfigDict:
  """The settings of a file, with what the command line says otherwise."""
  file, _, size = arguments.config.partition(":")
  get_config = runpy.run_path(file)["get_config"]
  config = get_config(size) if size else get_config()
  given = {
    "data.batch_size": arguments.rows,
    "data.seq_len": arguments.seq_len,
    "data.num_patches": arguments.num_patches,
    "optimizer.param_dtype": arguments.param_dtype,
  }
  settings = {name: value for name, value in given.items() if value is not None}
  for setting in arguments.set:
    name, _, value = setting.partition("=")
    settings[name] = _literal(value)
  config.update_from_flattened_dict(settings)
  return config


def _literal(text: str) -> Any:
  try:
    return ast.literal_eval(text)
  except (SyntaxError, ValueError):
    return text


def random_batch(config: ConfigDict, document_bytes: int) -> dict[str, np.ndarray]:
  """Rows of random bytes, patches and documents; every patch slot has a byte or more."""
  generator = np.random.default_rng(0)
  shapes = programs.abstract_batch(config, sharding.make_mesh(devices=jax.devices()[:1]))
  (rows, seq_len), num_patches = shapes["tokens"].shape, shapes["patch_lengths"].shape[1]
  first = tokenizer.OFFSET
  stream = generator.integers(first, first + 256, (rows, seq_len + 1), dtype=np.int32)
  if document_bytes:
    stream[generator.random(stream.shape) < 1 / document_bytes] = tokenizer.EOS_ID
  lengths = np.stack(
    [_random_lengths(generator, seq_len + 1, num_patches) for _ in range(rows)]
  )
  return {
    "tokens": stream[:, :-1],
    "targets": stream[:, 1:],
    "loss_mask": np.ones((rows, seq_len), bool),
    "patch_lengths": lengths,
  }


def _random_lengths(generator: np.random.Generator, total: int, number: int) -> np.ndarray:
  """Random lengths of 1 or more with this sum, the first of them 1: int32 [number]."""
  cuts = 2 + generator.choice(total - 2, min(number, total) - 2, replace=False)
  borders = np.concatenate([[0, 1], np.sort(cuts), [total]])
  lengths = np.diff(borders)
  return np.pad(lengths, (0, number - len(lengths))).astype(np.int32)


def measure(
  config: ConfigDict, document_bytes: int, with_peers: bool, wanted: Sequence[str] = PASSES
) -> Result:
  """Everything that `step_table.to_text` prints, in plain values; parts if all is wanted."""
  program = programs.make_program(config)
  if with_peers and not isinstance(program.model.config, BLTConfig):
    raise ValueError(f"--peers compares BLTs, and this is a {config.model.kind!r} model.")
  numbers = random_batch(config, document_bytes)
  batch = jax.device_put(numbers, jax.NamedSharding(program.mesh, sharding.BATCH))
  result = _describe(config, program, numbers)
  result["ceiling"] = _ceiling(program)
  stopwatch.say("timed a product and a copy")

  params = jax.jit(
    lambda: jax.tree.map(
      lambda x: x.astype(program.param_dtype), init.fresh_params(program.model, config.seed)
    ),
    out_shardings=jax.tree.map(lambda x: x.sharding, program.abstract_state.params),
  )()
  passes = _passes(program, params, batch, wanted)
  result["compiled"] = {name: memory for name, (_, memory) in passes.items()}
  calls = {name: call for name, (call, _) in passes.items()}
  result["seconds"] = {name: stopwatch.seconds(call) for name, call in calls.items()}
  stopwatch.say(f"timed {', '.join(calls) or 'no pass'}")
  if with_peers:
    result["in_turn"] = _in_turn(program, numbers, calls)
  del passes, calls, params

  if program.mesh.size == 1 and set(wanted) == set(PASSES):
    with sharding.on_mesh(program.mesh):
      result["parts"] = step_parts.measure(program.model.config, batch, program.param_dtype)
  if "step" in wanted:
    _add_step(result, program, batch)
  return result


def _describe(config: ConfigDict, program: programs.Program, batch: Any) -> Result:
  """Sizes, and FLOPs of forward + backward by both counts."""
  rows, seq_len = batch["tokens"].shape
  num_patches = batch["patch_lengths"].shape[1]
  model = program.model.config
  params, leaves = program.abstract_state.params, jax.tree.leaves(program.abstract_state)
  bytes_per_patch = seq_len / num_patches if config.patching.scheme != "byte" else 1.0
  chip = chips.find_chip(jax.devices()[0].device_kind)
  return {
    "device": jax.devices()[0].device_kind,
    "devices": program.mesh.size,
    "jax": jax.__version__,
    "rows": rows,
    "seq_len": seq_len,
    "num_patches": num_patches,
    "documents_per_row": float((batch["tokens"] == tokenizer.EOS_ID).sum() / rows + 1),
    "params": sum(x.size for x in jax.tree.leaves(params)),
    "param_dtype": program.param_dtype,
    "dtype": model.dtype,
    "state_bytes": sum(x.size * x.dtype.itemsize for x in leaves),
    "flops": rows * kinds.model_flops(model, seq_len, num_patches),
    "paper_flops": 3 * rows * seq_len * kinds.flops_per_byte(model, bytes_per_patch, seq_len),
    "chip_flops": chip.flops if chip else None,
  }


def _ceiling(program: programs.Program) -> dict[str, float]:
  """FLOP/s of a large product in the model's dtype and bytes/s of a copy, per device."""
  small = jax.default_backend() == "cpu"
  size, length = (2048, 2**26) if small else (8192, 2**30)
  square = jnp.ones((size, size), program.model.config.dtype)
  array = jnp.ones(length, jnp.bfloat16)
  product, copy = jax.jit(jnp.dot), jax.jit(lambda x: -x)
  return {
    "flops_per_s": 2 * size**3 / stopwatch.seconds(lambda: product(square, square)),
    "copied_bytes_per_s": 2 * array.nbytes / stopwatch.seconds(lambda: copy(array)),
  }


def _passes(
  program: programs.Program, params: Any, batch: Any, wanted: Sequence[str]
) -> dict[str, Any]:
  """Calls of forward and forward + backward, and what compiling them took and planned."""

  def loss(params, batch):
    sums = steps.sums(program.model, params, batch)
    return sums["nats"] / sums["targets"]

  functions = {"forward": loss, "forward_backward": jax.value_and_grad(loss)}
  functions = {name: f for name, f in functions.items() if name in wanted}
  options = {"compiler_options": program.options["compiler_options"]}
  passes = {}
  for name, function in functions.items():
    jitted = jax.jit(function, **options)
    with sharding.on_mesh(program.mesh):
      compiled, numbers = _compile(lambda f=jitted: f.trace(params, batch))
    stopwatch.say(f"compiled {name}")
    passes[name] = (lambda run=compiled: run(params, batch)), numbers
  return passes


def _compile(trace: Callable[[], jax.stages.Traced]) -> tuple[jax.stages.Compiled, Result]:
  begin = time.perf_counter()
  compiled = trace().lower().compile()
  seconds = time.perf_counter() - begin
  memory = compiled.memory_analysis()
  kept = memory.argument_size_in_bytes + memory.output_size_in_bytes
  return compiled, {
    "compile_s": seconds,
    "temporary_bytes": memory.temp_size_in_bytes,
    "peak_bytes": kept - memory.alias_size_in_bytes + memory.temp_size_in_bytes,
  }


def _add_step(result: Result, program: programs.Program, batch: Any) -> None:
  """The whole step, and the optimizer alone; the state is donated to both."""
  compiled, result["compiled"]["step"] = _compile(lambda: program.trace(batch))
  stopwatch.say("compiled the step")
  state = program.create_state()

  def step():
    nonlocal state
    state, metrics = compiled(state, batch, program.peak)
    return metrics

  result["seconds"]["step"] = stopwatch.seconds(step)
  stopwatch.say("timed the step")

  def update(params, opt_state):
    gradients = jax.tree.map(lambda x: x.astype(jnp.float32) * 1e-3, params)
    updates, opt_state = program.optimizer.update(gradients, opt_state, params)
    return jax.tree.map(lambda p, u: (p + u).astype(p.dtype), params, updates), opt_state

  with sharding.on_mesh(program.mesh):
    optimize = jax.jit(update, donate_argnums=(0, 1))
  parts = state.params, state.opt_state
  del state

  def apply():
    nonlocal parts
    parts = optimize(*parts)
    return jax.tree.leaves(parts)[0]

  result["seconds"]["optimizer"] = stopwatch.seconds(apply)


def _in_turn(program: programs.Program, batch: Any, calls: dict[str, Any]) -> Result:
  """Seconds of our passes and of the peers', measured in turn."""
  model = program.model.config
  ours = {"blt_jax": calls}
  every = ours | step_peers.peers(model, batch, model.dtype)
  return {
    name: stopwatch.in_turn({peer: calls[name] for peer, calls in every.items()})
    for name in ("forward", "forward_backward")
  }


if __name__ == "__main__":
  main()
