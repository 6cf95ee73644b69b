"""Likelihoods against the full forward pass."""

import dataclasses

import chex
import jax
import numpy as np
import pytest
from forward import TINY
from golden_cases import FLOAT32
from uncached import random_blt

from blt_jax import tokenizer
from blt_jax.decode import scoring, shared_start
from blt_jax.decode.blt import BLTReader
from blt_jax.decode.scoring import Scorer

CONTEXTS = ["", "a", "hello world", "the end", b"\xff"]


def _scorer(uncached):
  return Scorer(uncached.cached(), batch_size=2, chunk=16)


def _log_probs(uncached, ids):
  """Of each id [n] given those before it, and the likeliest ones."""
  logits = uncached.logits(ids[None])[0, :-1]
  log_probs = np.asarray(jax.nn.log_softmax(logits))
  return log_probs[np.arange(len(ids) - 1), ids[1:]], logits.argmax(axis=1)


def test_loglikelihood():
  uncached = random_blt(TINY)
  pairs = [(context, " and more") for context in CONTEXTS]
  _, best = _log_probs(uncached, tokenizer.encode("ab", add_eos=False))
  likely = tokenizer.decode_bytes(best[-1:])
  pairs += [("ab", likely), ("ab", likely + b"\xfe\xfe\xfe")] if likely else []
  for (context, continuation), got in zip(
    pairs, _scorer(uncached).loglikelihood(pairs), strict=True
  ):
    ids = tokenizer.encode(context, add_eos=False)
    new = tokenizer.encode(continuation, add_bos=False, add_eos=False)
    log_probs, best = _log_probs(uncached, np.concatenate([ids, new]))
    start = len(ids) - 1
    np.testing.assert_allclose(got.log_prob, log_probs[start:].sum(), **FLOAT32)
    assert got.is_greedy == bool((best[start:] == new).all())


def _counting(reads):
  """A model that adds to `reads` how many ids it reads."""
  model = random_blt(TINY).cached()

  class Counting(BLTReader):
    def read(self, weights, cache, tokens, count, *others):
      jax.debug.callback(lambda n: reads.append(int(n)), count.sum())
      return super().read(weights, cache, tokens, count, *others)

  fields = {f.name: getattr(model.reader, f.name) for f in dataclasses.fields(model.reader)}
  return dataclasses.replace(model, reader=Counting(**fields))


def test_a_context_is_read_once_for_all_its_continuations():
  reads = []
  scorer = Scorer(_counting(reads), batch_size=3, chunk=16)
  pairs = [(c, e) for c in CONTEXTS for e in (" a", " choice of this length", " b", " cd")]
  together = scorer.loglikelihood(pairs)
  jax.effects_barrier()
  sizes = {context: len(context.encode() if isinstance(context, str) else context) + 1
           for context in CONTEXTS}  # fmt: skip
  assert sum(reads) == sum(sizes.values()) + sum(len(end) - 1 for _, end in pairs)
  for pair, score in zip(pairs, together, strict=True):
    (alone,) = scorer.loglikelihood([pair])
    np.testing.assert_allclose(score.log_prob, alone.log_prob, rtol=1e-5)
    assert score.is_greedy == alone.is_greedy


def test_what_contexts_begin_with_is_read_once_for_all():
  reads, start = [], "Examples before each of the questions: one, two. "
  scorer = Scorer(_counting(reads), batch_size=3, chunk=16)
  ends = ["", "five", "six, seven", "ei", "nine", "ten, eleven"]
  pairs = [(start + end, continuation) for end in ends for continuation in (" so", " and more")]
  together = scorer.loglikelihood(pairs)
  jax.effects_barrier()
  read_after = sum(len(e) for e in ends) + sum(len(end) - 1 for _, end in pairs)
  assert sum(reads) == len(start) + 1 + read_after
  for pair, score in zip(pairs, together, strict=True):
    (alone,) = _scorer(random_blt(TINY)).loglikelihood([pair])
    np.testing.assert_allclose(score.log_prob, alone.log_prob, rtol=1e-5)
    assert score.is_greedy == alone.is_greedy


def test_memory_is_that_of_contexts_and_of_continuations(monkeypatch):
  """Nothing of a batch is left when the next one is read, but one row with its start."""
  held, real = [], shared_start.StartReader._read_on

  def spy(*arguments):
    held.append(sum(x.nbytes for x in jax.live_arrays()) - before)
    return real(*arguments)

  monkeypatch.setattr(shared_start.StartReader, "_read_on", spy)
  scorer = Scorer(random_blt(TINY).cached(), batch_size=8, chunk=16)
  before = sum(x.nbytes for x in jax.live_arrays())
  start = "Examples before each of the questions: one, two. "
  scorer.loglikelihood([(f"{start}{i:02}", " so") for i in range(24)])
  cache = scorer._starts.read([np.arange(4)], 8, 1024)
  size = sum(x.nbytes for x in jax.tree.leaves(cache))
  assert len(held) > 3 and max(held) < 0.3 * size


def test_starts_contexts_and_continuations_are_read_by_one_program():
  once = chex.assert_max_traces(shared_start.read_after.__wrapped__, n=1)
  read = jax.jit(once, static_argnums=(0, 7))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(shared_start, "read_after", read)
    patch.setattr(scoring, "read_after", read)
    start = "Examples before each of the questions: one, two. "
    pairs = [(f"{start}{i:02}", end) for i in range(4) for end in (" so", " and so on")]
    Scorer(random_blt(TINY).cached(), batch_size=4, chunk=16).loglikelihood(pairs)


def test_rolling_is_the_whole_text():
  uncached = random_blt(TINY)
  texts = ["one text", "another, longer text", "", b"\x00\xff"]
  got = _scorer(uncached).loglikelihood_rolling(texts)
  for text, total in zip(texts, got, strict=True):
    log_probs, _ = _log_probs(uncached, tokenizer.encode(text, add_eos=False))
    np.testing.assert_allclose(total, log_probs.sum(), **FLOAT32)


def test_mistakes_are_named():
  with pytest.raises(ValueError, match="Pair 1 has an empty continuation"):
    _scorer(random_blt(TINY)).loglikelihood([("a", "b"), ("a", "")])
  for bad, flaw in (
    (("a",), "must be .context, continuation"),
    (("a", None), "must be .context, continuation"),
    (("a", "\ud800"), "a lone surrogate"),
  ):
    with pytest.raises(ValueError, match=f"Pair 0 .*{flaw}"):
      _scorer(random_blt(TINY)).loglikelihood([bad])
  with pytest.raises(ValueError, match="texts must be a list, got str"):
    _scorer(random_blt(TINY)).loglikelihood_rolling("text")
  with pytest.raises(ValueError, match="batch_size is 0"):
    Scorer(random_blt(TINY).cached(), batch_size=0)
  scorer = Scorer(random_blt(TINY, 0.5).cached(max_patches=2), batch_size=2, chunk=16)
  with pytest.raises(ValueError, match="Text 0 needs more patches"):
    scorer.loglikelihood_rolling(["1!2?3" * 8])
