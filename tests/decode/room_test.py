"""Rows that are read at a time, by the memory that weights leave."""

import jax
import numpy as np
from forward import TINY
from uncached import random_blt

from blt_jax.decode import room
from blt_jax.decode.generator import Generator
from blt_jax.decode.sampling import Sampling
from blt_jax.decode.scoring import Scorer

TEXTS = ["one", "two and", "three", "four " * 3, "five"]


def _row_bytes(model, slots):
  cache = jax.eval_shape(lambda: model.reader.init(1, slots, 1))
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))


def test_devices_that_tell_their_memory_limit_the_rows(monkeypatch, caplog):
  model = random_blt(TINY).cached()
  row = _row_bytes(model, 256)
  monkeypatch.setattr(room, "_limit", lambda device: None)  # a CPU tells nothing
  assert room.rows_that_fit(model, 64, 256) == 64
  for rows, want in ((100, 64), (64, 64), (63, 32), (5, 4), (0.5, 1)):
    monkeypatch.setattr(room, "_room", lambda _, r=rows: r * 2 * row)
    assert room.rows_that_fit(model, 64, 256, copies=2) == want
  assert "4 texts of up to 256 ids are read at a time, not 64" in caplog.text


def test_weights_take_room(monkeypatch):
  model = random_blt(TINY).cached()
  weights = jax.tree.map(jax.device_put, model.weights)
  size = sum(x.nbytes for x in jax.tree.leaves(weights))
  monkeypatch.setattr(room, "_limit", lambda device: None)  # as CPUs
  assert room._room(weights) is None
  monkeypatch.setattr(room, "_limit", lambda device: 10**9)
  assert room._room(weights) == 10**9 - size


def test_fewer_rows_read_and_write_the_same(monkeypatch):
  model = random_blt(TINY).cached()
  pairs = [(text, end) for text in TEXTS for end in (" so", " and more")]

  def run():
    scores = Scorer(model, batch_size=4, chunk=16).loglikelihood(pairs)
    generator = Generator(model, batch_size=4, prefill_chunk=16)
    written = generator.generate(TEXTS, Sampling(max_bytes=8))
    return np.array([s.log_prob for s in scores]), [w.bytes for w in written]

  scores, written = run()
  asked = []

  def fit(model, most, slots, *others, **options):
    asked.append(most)
    return min(most, 2)

  for module in ("scoring", "rows"):
    monkeypatch.setattr(f"blt_jax.decode.{module}.rows_that_fit", fit)
  fewer, also = run()
  assert max(asked) == 4
  np.testing.assert_allclose(fewer, scores, rtol=1e-5)
  assert also == written
