"""How fast a BLT generates, on random weights of a given size or on a trained run.

  python benchmarks/generate.py --size=1b [--batch=1,64] [--uneven] [--hugging_face]
  python benchmarks/generate.py --run=runs/quickstart/blt --text=FILE [--temperature=1]
  python benchmarks/generate.py --size=8b --topology=v4:2x2x1

With random weights the entropy model runs, but patches have 4 and 5 bytes in turn, or 1 to 8
at random (--uneven), each row at other bytes, and prompts are random letters unless there is
a text. A trained run is also measured with drafts, whose worth depends on the text. The
limit is the time that reading the matrices takes: the entropy model's, the encoder's and the
decoder's for every byte, the latent transformer's for every patch.
"""

import argparse
import dataclasses
import json
import pathlib
import runpy
import statistics
import time
from typing import Any

import hugging_face
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from blt_jax import config as settings
from blt_jax import tokenizer
from blt_jax.cost import topologies
from blt_jax.decode import loop, placement, sampling
from blt_jax.decode.blt import BLTReader
from blt_jax.decode.byte_lm import ByteLMReader, EntropyModel
from blt_jax.decode.drafting import Drafting
from blt_jax.decode.from_params import blt_weights, byte_lm_weights
from blt_jax.decode.language_model import LanguageModel
from blt_jax.models.blt import BLT
from blt_jax.models.byte_lm import ByteLM
from blt_jax.models.init import abstract_params
from blt_jax.parallel import sharding
from blt_jax.patching import PatchingConfig
from blt_jax.runs import loading

_PATCH_SIZE = 4.5
_SIZES = np.random.default_rng(0).permutation(np.tile(np.arange(1, 9), 2000))
_STARTS = np.isin(np.arange(_SIZES.sum()), np.cumsum(_SIZES))  # of patches
_GREEDY = sampling.Sampling()
_CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


@dataclasses.dataclass(frozen=True)
class Paced:
  """Entropies of a model, raised so that patches are `_PATCH_SIZE` bytes on average."""

  source: EntropyModel
  is_uneven: bool = False
  gives_logits: bool = dataclasses.field(default=True, init=False)

  def init(self, batch_size, capacity, chunk):
    return self.source.init(batch_size, capacity, chunk)

  def read(self, weights, cache, tokens, count):
    entropies, logits, pending = self.source.read(weights, cache, tokens, count)
    rows, position = np.arange(len(tokens))[:, None], pending.trail.position  # [B, C + 1]
    if self.is_uneven:
      due = jnp.asarray(_STARTS)[(position[:, 1:] + 997 * rows) % len(_STARTS)]
    else:  # rows begin out of step
      patch = jnp.floor(position / _PATCH_SIZE + rows / len(tokens))
      due = patch[:, 1:] != patch[:, :-1]
    return jnp.where(due, 10, 0) + 1e-6 * entropies, logits, pending


def main() -> None:
  """Measures and prints a table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--size", default="1b", help="of configs/blt_SIZE.py")
  parser.add_argument("--run", help="a trained run instead of random weights")
  parser.add_argument("--entropy_model", help="of a trained run, as blt_jax.generate takes it")
  parser.add_argument("--uneven", action="store_true", help="patches of 1 to 8 bytes")
  parser.add_argument("--batch", default="1,64", help="numbers of rows")
  parser.add_argument("--text", type=pathlib.Path, help="file whose bytes are the prompts")
  parser.add_argument("--temperature", type=float, default=0.0, help="0: the likeliest byte")
  parser.add_argument("--prompt_bytes", type=int, default=256)
  parser.add_argument("--new_bytes", type=int, default=512)
  parser.add_argument("--long_prompt", type=int, default=4096, help="for time to first byte")
  parser.add_argument("--hugging_face", action="store_true", help="its BLT of --size as well")
  parser.add_argument("--topology", help="only compile, for v4:2x2x1, v5e:1x1, ...")
  parser.add_argument("--json", help="also write the numbers to this file")
  args = parser.parse_args()
  if args.entropy_model and not args.run:
    parser.error("--entropy_model is of a --run.")
  if args.topology:
    print(json.dumps(compile_for(args.topology, args.size, int(args.batch.split(",")[0]))))
    return
  if args.run:
    model = loading.load_language_model(args.run, args.entropy_model)
  else:
    model = random_model(args.size, args.uneven)
  numbers: dict[str, Any] = {"device": jax.devices()[0].device_kind}
  numbers["bandwidth_GBps"] = bandwidth()
  traffic = traffic_per_byte(model)
  numbers["matrix_MB_per_byte"] = traffic / 1e6
  numbers["limit_bytes_per_s"] = numbers["bandwidth_GBps"] * 1e9 / traffic
  print(json.dumps(numbers))
  numbers["decode"] = []
  # No row should end on its own: of random weights none does.
  drawn = sampling.Sampling(temperature=args.temperature, ignore_eos=bool(args.run))
  plans = [(int(b), None) for b in args.batch.split(",")]
  if args.run:
    plans += [(1, Drafting(by)) for by in model.reader.drafters]
  for batch, drafting in plans:
    prompts = make_prompts(args.text, batch, args.prompt_bytes)
    row = measure(model, prompts, args.new_bytes, drafting, drawn)
    numbers["decode"].append(row)
    print(json.dumps(row), flush=True)
  numbers["first_byte"] = first_byte(model, args.long_prompt)
  print(json.dumps(numbers["first_byte"]))
  if args.hugging_face:
    del model
    sizes = _model_config(f"blt_{args.size}.py"), _model_config("entropy_100m.py")
    numbers["hugging_face"] = hugging_face.measure(*sizes, args.prompt_bytes)
    print(json.dumps(numbers["hugging_face"]))
  if args.json:
    pathlib.Path(args.json).write_text(json.dumps(numbers, indent=2))


def abstract_model(size: str, is_uneven: bool = False) -> tuple[BLTReader, Any]:
  """A reader and the shapes of its weights, in bfloat16."""
  blt = _model_config(f"blt_{size}.py")
  entropy = _model_config("entropy_100m.py")
  source = Paced(EntropyModel(ByteLMReader(entropy, "bfloat16")), is_uneven)
  reader = BLTReader(blt, PatchingConfig(threshold=5.0), "bfloat16", source)
  params = abstract_params(BLT(blt))
  shapes = jax.eval_shape(lambda p: blt_weights(blt, p, "bfloat16"), params)
  params = abstract_params(ByteLM(entropy))
  source_shapes = jax.eval_shape(lambda p: byte_lm_weights(entropy, p, "bfloat16"), params)
  return reader, dataclasses.replace(shapes, source=source_shapes)


def _model_config(name: str) -> Any:
  config = runpy.run_path(str(_CONFIGS / name))["get_config"]()
  return settings.make_model_config(config.model)


def random_model(size: str, is_uneven: bool = False) -> LanguageModel:
  """Random weights, drawn where they lie."""
  reader, shapes = abstract_model(size, is_uneven)
  leaves, tree = jax.tree.flatten(shapes)
  weights = [_random(x, i) for i, x in enumerate(leaves)]
  weights = jax.tree.unflatten(tree, weights)
  # No row should end on its own.
  output = weights.output.at[tokenizer.EOS_ID].set(0)
  return LanguageModel(reader, dataclasses.replace(weights, output=output))


def _random(shape, seed):
  if len(shape.shape) == 1:
    return jnp.ones(shape.shape, shape.dtype)
  draw = jax.jit(jax.random.normal, static_argnums=(1, 2))
  return draw(jax.random.key(seed, impl="rbg"), shape.shape, shape.dtype) * 0.02


def compile_for(name: str, size: str, batch: int) -> dict[str, Any]:
  """Compiles the decode loop for TPUs that need not be there; GB are for each chip."""
  devices = topologies.get_topology(name).devices
  mesh = sharding.make_mesh(tensor=len(devices), devices=devices)
  reader, shapes = abstract_model(size)
  reader = dataclasses.replace(reader, max_patches=1024)
  weights = _placed(shapes, placement.weight_shardings(shapes, mesh))
  prompts = np.zeros((batch, 256), np.int32)
  state = jax.eval_shape(lambda w: start(reader, w, prompts, 4096 + 16), shapes)
  state = _placed(state, state_shardings(state, mesh))
  scalar = NamedSharding(mesh, PartitionSpec())
  begin = time.perf_counter()
  compiled = loop.generate.lower(
    reader,
    weights,
    state,
    jax.ShapeDtypeStruct((), jnp.int32, sharding=scalar),
    jax.ShapeDtypeStruct((), jnp.int32, sharding=scalar),
    None,
    frozenset(),
  ).compile()
  memory = compiled.memory_analysis()
  return {
    "topology": name,
    "size": size,
    "batch": batch,
    "chips": mesh.size,
    "arguments_GB": memory.argument_size_in_bytes / 1e9,
    "temp_GB": memory.temp_size_in_bytes / 1e9,
    "code_GB": memory.generated_code_size_in_bytes / 1e9,
    "compile_s": time.perf_counter() - begin,
  }


def state_shardings(state: Any, mesh: Mesh) -> Any:
  """Shardings of rows being continued: heads of keys and values over "tensor"."""

  def place(x):
    axes: list[str | None] = [None] * len(x.shape)
    if len(x.shape) >= 4:
      axes[-2] = "heads"
    return placement.fit(axes, x.shape, mesh)

  return jax.tree.map(place, state)


def _placed(shapes, shardings):
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
  )


def traffic_per_byte(model: LanguageModel) -> float:
  """Bytes of matrices that one generated byte reads."""

  def size(tree):
    return sum(x.nbytes for x in jax.tree.leaves(tree))

  weights = model.weights
  every_byte = size([weights.encoder, weights.decoder, weights.output])
  if getattr(model.reader.source, "gives_logits", False):  # no table
    every_byte += size([weights.source.layers, weights.source.norm, weights.source.output])
  return every_byte + size([weights.latent, weights.latent_projection]) / _PATCH_SIZE


def bandwidth() -> float:
  """GB/s of large copies, bytes read and written."""
  x = jnp.ones(2**28 if jax.default_backend() != "cpu" else 2**24, jnp.float32)
  copies = 10  # in one call, whose own time must not count
  copy = jax.jit(lambda x: jax.lax.fori_loop(0, copies, lambda _, x: x + 1, x))
  return copies * 2 * x.nbytes / seconds(lambda: copy(x)) / 1e9


def make_prompts(text: pathlib.Path | None, batch: int, length: int) -> np.ndarray:
  """Ids [batch, length]: pieces of a text, or random letters."""
  shape = batch, length
  if text is None:
    data = np.random.default_rng(0).integers(ord("a"), ord("z"), shape)
    return (data + tokenizer.OFFSET).astype(np.int32)
  data = np.frombuffer(text.read_bytes(), np.uint8)
  if len(data) < length:
    raise ValueError(f"{text} has {len(data)} bytes and prompts have {length}.")
  starts = np.linspace(0, len(data) - length, batch + 1, dtype=int)[1:]
  return np.stack([data[s : s + length] for s in starts]).astype(np.int32) + tokenizer.OFFSET


def measure(model, prompts, new_bytes, drafting, drawn=_GREEDY) -> dict[str, Any]:
  """Bytes per second of the decode loop, all rows together."""
  batch, prompt_bytes = prompts.shape
  capacity = prompt_bytes + new_bytes + 16
  reader = model.reader
  if isinstance(reader.source, Paced):  # not many more patches come
    reader = dataclasses.replace(reader, max_patches=int(capacity / 3.5) + 16)

  def begin_rows():
    return start(reader, model.weights, prompts, capacity, drafting, drawn)

  state = begin_rows()
  arguments = (reader, model.weights, state, jnp.int32(2**30), jnp.int32(2**30))
  begin = time.perf_counter()
  compiled = loop.generate.lower(*arguments, drafting, drawn.parts).compile()
  compile_seconds = time.perf_counter() - begin
  times, passes = [], 0
  for _ in range(3):
    state = begin_rows()
    jax.block_until_ready(state)
    begin = time.perf_counter()
    state = compiled(model.weights, state, jnp.int32(2**30), jnp.int32(2**30))
    jax.block_until_ready(state.length)
    times.append(time.perf_counter() - begin)
    new = int((state.length - state.prompt).sum())
    passes = int(state.passes.sum())
  memory = compiled.memory_analysis()
  return {
    "batch": batch,
    "drafting": drafting and dataclasses.asdict(drafting),
    "new_bytes": new,
    "bytes_per_s": new / statistics.median(times),
    "bytes_per_pass": new / passes,
    "patches": int(state.cache.cursor.patch[0]),
    "compile_s": compile_seconds,
    "temp_MB": memory.temp_size_in_bytes / 1e6,
    "cache_MB": sum(x.nbytes for x in jax.tree.leaves(state.cache)) / 1e6,
  }


def start(reader, weights, prompts, capacity, drafting=None, drawn=_GREEDY) -> loop.State:
  """Rows that have read their prompts [B, n]."""
  batch, length = prompts.shape
  tokens = np.zeros((batch, capacity), np.int32)
  tokens[:, :length] = prompts
  keep_back = drafting.length if drafting else 1
  lengths, chunk = np.full(batch, length, np.int32), min(256, length)
  cache, logits, log_probs, _ = loop.prefill(reader, weights, tokens, lengths, chunk, keep_back)
  options = [dataclasses.replace(drawn, seed=row) for row in range(batch)]
  return loop.start(
    reader, cache, logits, log_probs, tokens, lengths, lengths + (capacity - length - 16),
    sampling.make_options(options, 1, 1),
  )  # fmt: skip


def first_byte(model, prompt_bytes) -> dict[str, Any]:
  """Seconds from a prompt to the first byte."""
  tokens = np.random.default_rng(0).integers(4, 260, (1, prompt_bytes)).astype(np.int32)
  lengths = np.array([prompt_bytes], np.int32)
  arguments = (model.reader, model.weights, tokens, lengths, 256)
  begin = time.perf_counter()
  jax.block_until_ready(loop.prefill(*arguments))
  first = time.perf_counter() - begin
  again = seconds(lambda: loop.prefill(*arguments)[1].argmax())
  return {"prompt_bytes": prompt_bytes, "first_byte_s": again, "compile_s": first - again}


def seconds(function) -> float:
  """Median of five calls after one."""
  jax.block_until_ready(function())
  times = []
  for _ in range(5):
    begin = time.perf_counter()
    jax.block_until_ready(function())
    times.append(time.perf_counter() - begin)
  return statistics.median(times)


if __name__ == "__main__":
  main()
