"""The tiny models of both references, converted, and what they computed."""

import dataclasses
import functools

import golden_cases
from safetensors.numpy import load_file

from blt_jax import convert
from blt_jax.patching import PatchingConfig


@functools.cache
def hf():
  return convert.from_hf(golden_cases.GOLDEN / "hf_tiny"), golden_cases.load_run("hf_tiny")


@functools.cache
def meta():
  args = golden_cases.load_json("meta_tiny/args.json")
  arrays, entropy_arrays = (
    load_file(golden_cases.GOLDEN / "meta_tiny" / f"{name}.safetensors")
    for name in ("model", "entropy_model")
  )
  converted = convert.from_meta_state(
    args["model"], arrays, args["entropy_model"], entropy_arrays
  )
  rule = PatchingConfig(threshold=args["patcher"]["threshold"])
  run = golden_cases.load_run("meta_tiny")
  return dataclasses.replace(converted, patching=rule), run
