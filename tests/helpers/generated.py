"""What a tiny model makes of some prompts, generated once for all tests."""

import functools

from forward import TINY
from uncached import random_blt

from blt_jax.decode.generator import Generator
from blt_jax.decode.sampling import Sampling

PROMPTS = ["", "a", "hello world", b"\xff\xfe" * 8, "ab\n"]
GREEDY = Sampling(max_bytes=24)


@functools.cache
def model():
  return random_blt(TINY).cached()


@functools.cache
def generate(options=GREEDY, drafting=None, batch_size=2, prompts=tuple(PROMPTS)):
  generator = Generator(model(), batch_size=batch_size, drafting=drafting, prefill_chunk=4)
  return generator.generate(prompts, options)
