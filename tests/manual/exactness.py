"""Generates from many random prompts and compares each with the full forward pass.

  PYTHONPATH=tests/helpers:tests/decode python tests/manual/exactness.py [--prompts=1000]

The tests do the same on a few prompts. Prints, for each model and rule, how many texts
were compared and the largest difference of a log-probability; fails on the first
difference in bytes or patches, or above 1e-4.
"""

import argparse
import dataclasses
import sys

import jax
import numpy as np
from forward import TINY, stack
from reader_test import VARIANTS
from references import hf, meta
from uncached import LENGTH, Uncached, random_blt

from blt_jax import tokenizer
from blt_jax.decode.drafting import Drafting
from blt_jax.decode.generator import Generator
from blt_jax.decode.sampling import Sampling
from blt_jax.patching import PatchingConfig

NEW = 16


def _golden(run) -> Uncached:
  c, _ = run()
  return Uncached(c.config, c.params, c.patching, c.entropy_config, c.entropy_params)


def _cases():
  yield "golden hf", _golden(hf)
  yield "golden meta", _golden(meta)
  for name, (config, rule) in VARIANTS.items():
    yield name, random_blt(config, **rule)
  for k in (1, 4):
    yield f"k = {k}", random_blt(dataclasses.replace(TINY, vectors_per_patch=k))
  wide = dataclasses.replace(TINY, encoder=stack(16, 1, window=100), decoder=stack(16, 1))
  yield "wide window", random_blt(wide)
  rules = {
    "monotonic": PatchingConfig(threshold=0.2, monotonic=True),
    "add": PatchingConfig(threshold=2.0, threshold_add=0.1),
    "cumulative": PatchingConfig(threshold=8.0, cumulative=True, max_patch_length=6),
    "space": PatchingConfig(scheme="space"),
    "uneven static": PatchingConfig(scheme="static", patch_size=2.7),
    "byte": PatchingConfig(scheme="byte"),
  }
  for name, rule in rules.items():
    yield name, dataclasses.replace(random_blt(TINY), patching=rule)


def _compare(result, uncached) -> float:
  """The largest difference of a log-probability; raises where anything else differs."""
  ids = np.concatenate([result.prompt, result.ids])[None]
  start = len(result.prompt) - 1
  logits = uncached.logits(ids)[0, start:-1]
  np.testing.assert_array_equal(result.ids, logits.argmax(axis=1))
  lengths = uncached.lengths(ids)[0]
  starts = np.cumsum(lengths) - lengths
  np.testing.assert_array_equal(np.flatnonzero(result.starts), starts[starts < ids.shape[1]])
  log_probs = np.asarray(jax.nn.log_softmax(logits))[np.arange(len(logits)), result.ids]
  difference = float(np.abs(log_probs - result.log_probs).max())
  assert difference < 1e-4, difference
  return difference


def main() -> None:
  """Runs all cases."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--prompts", type=int, default=1000)
  count = parser.parse_args().prompts
  cases = list(_cases())
  rng, total = np.random.default_rng(0), 0
  for name, uncached in cases:
    lengths = rng.integers(0, LENGTH - NEW - 1, -(-count // len(cases)))
    lengths[:3] = 0, 1, 2
    prompts = [
      np.concatenate([[tokenizer.BOS_ID], rng.integers(2, 260, n)]).astype(np.int32)
      for n in lengths
    ]
    batch_size = int(rng.integers(1, 17))
    by = ("entropy", "decoder")[total % 2]
    can_draft = uncached.patching.scheme == "entropy"
    plain, drafted = (
      Generator(
        uncached.cached(), batch_size=batch_size, prefill_chunk=16, drafting=d
      ).generate(prompts, Sampling(max_bytes=NEW))
      for d in (None, Drafting(by, 4, 9.0) if can_draft else None)
    )
    difference = max(_compare(result, uncached) for result in plain)
    for one, other in zip(plain, drafted, strict=True):
      np.testing.assert_array_equal(one.ids, other.ids)
    total += len(prompts)
    print(f"{name:15s} {len(prompts):5d} prompts, {batch_size:2d} rows, {difference:.1e}")
    sys.stdout.flush()
  print(f"{total} prompts, all equal")


if __name__ == "__main__":
  main()
