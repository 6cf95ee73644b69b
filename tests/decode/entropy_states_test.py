"""A BLT that takes its entropy model's states reads and writes as its full forward pass."""

import dataclasses

import pytest
from forward import TINY
from uncached import random_blt

from blt_jax.decode import Generator, Sampling
from blt_jax.decode.byte_lm import ByteLMReader, EntropyModel
from blt_jax.decode.drafting import Drafting
from blt_jax.decode.language_model import from_blt
from blt_jax.models.blt import BLT
from blt_jax.models.config import ByteLMConfig
from blt_jax.patching import PatchingConfig

CONFIG = dataclasses.replace(TINY, entropy_state_dim=16)
PROMPTS = ["", "def f", "a cat is a cat"]
DRAFTS = [None, Drafting("entropy", 3, 9.0), Drafting("decoder", 3, 3.0)]


@pytest.mark.parametrize("drafting", DRAFTS)
def test_generates_as_the_full_forward(drafting):
  uncached = random_blt(CONFIG)
  generator = Generator(
    uncached.cached(), batch_size=2, max_length=48, drafting=drafting, prefill_chunk=8
  )
  results = generator.generate(PROMPTS, Sampling(max_bytes=20))
  for result in results:
    uncached.check(result, is_greedy=True)
  if drafting and drafting.by == "decoder":  # which guesses more of it right
    assert sum(r.passes for r in results) < sum(len(r.ids) for r in results)


def test_states_are_those_of_the_entropy_model_alone():
  uncached = random_blt(CONFIG)
  stack = dataclasses.replace(uncached.entropy_config.transformer, dim=8)
  other = EntropyModel(ByteLMReader(ByteLMConfig(stack), "float32")), None
  cases = [(uncached.patching, other, 8), (PatchingConfig(scheme="space"), None, None)]
  for rule, source, width in cases:
    with pytest.raises(ValueError, match=f"of width 16, and this one's is {width}: patch by"):
      from_blt(BLT(CONFIG), uncached.params, rule, source=source)
